"""``python -m tasks.metrics`` prints the glossary that stands in this room's README."""

from tasks.metrics.declared import glossary_text


def main() -> None:
    print(glossary_text())


if __name__ == "__main__":
    main()
