"""What is found out from rows and manifests, for the pages, the report and the terminal alike."""
