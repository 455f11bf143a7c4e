"""Conversations as the templates of model families and data sets write them out, written by hand from their documents."""

from typing import NamedTuple


class Written(NamedTuple):
    begin: str
    """Up to where the answer begins."""
    whole: str


# Before all, a user's turn, an assistant's turn that is over, the opening of the answer, and the end of the answer.
WRITTEN = {
    "chatml": ("", "<|im_start|>user\n{}<|im_end|>\n", "{}<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>\n"),
    "chatml_system": (
        "<|im_start|>system\nBe kind.<|im_end|>\n",
        "<|im_start|>user\n{}<|im_end|>\n",
        "{}<|im_end|>\n",
        "<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "phi_4": (
        "",
        "<|im_start|>user<|im_sep|>{}<|im_end|>",
        "{}<|im_end|>",
        "<|im_start|>assistant<|im_sep|>",
        "<|im_end|>",
    ),
    "llama_2": ("<s>", "[INST] {} ", " {} </s><s>", "[/INST]", " </s>"),
    "mistral": ("<s>", "[INST] {}", " {}</s>", "[/INST]", "</s>"),
    "llama_3": (
        "<|begin_of_text|>",
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
        "{}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "llama_4": (
        "<|begin_of_text|>",
        "<|header_start|>user<|header_end|>\n\n{}<|eot|>",
        "{}<|eot|>",
        "<|header_start|>assistant<|header_end|>\n\n",
        "<|eot|>",
    ),
    "gemma": (
        "<bos>",
        "<start_of_turn>user\n{}<end_of_turn>\n",
        "{}<end_of_turn>\n",
        "<start_of_turn>model\n",
        "<end_of_turn>\n",
    ),
    "phi_3": ("", "<|user|>\n{}<|end|>\n", "{}<|end|>\n", "<|assistant|>\n", "<|end|>\n<|endoftext|>"),
    "zephyr": ("", "<|user|>\n{}</s>\n", "{}</s>\n", "<|assistant|>\n", "</s>\n"),
    "oasst": ("", "<|prompter|>{}<|endoftext|>", "{}<|endoftext|>", "<|assistant|>", "<|endoftext|>"),
    "command_r": (
        "<BOS_TOKEN>",
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{}<|END_OF_TURN_TOKEN|>",
        "{}<|END_OF_TURN_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
    ),
    "deepseek": (
        "<｜begin▁of▁sentence｜>",
        "<｜User｜>{}",
        "{}<｜end▁of▁sentence｜>",
        "<｜Assistant｜>",
        "<｜end▁of▁sentence｜>",
    ),
    "granite": (
        "",
        "<|start_of_role|>user<|end_of_role|>{}<|end_of_text|>\n",
        "{}<|end_of_text|>\n",
        "<|start_of_role|>assistant<|end_of_role|>",
        "<|end_of_text|>\n",
    ),
    "exaone": ("", "[|user|]{}\n", "{}[|endofturn|]\n", "[|assistant|]", "[|endofturn|]\n"),
    "openchat": (
        "<s>",
        "GPT4 Correct User: {}<|end_of_turn|>",
        " {}<|end_of_turn|>",
        "GPT4 Correct Assistant:",
        "<|end_of_turn|>",
    ),
    "harmony": (
        "<|start|>system<|message|>Be kind.<|end|>",
        "<|start|>user<|message|>{}<|end|>",
        "{}<|end|>",
        "<|start|>assistant",
        "<|return|>",
    ),
    "hh": ("", "\n\nHuman: {}", " {}", "\n\nAssistant:", ""),
    "user_assistant": ("Be kind.\n", "User: {}\n", " {}\n", "Assistant:", ""),
    "guanaco": ("", "### Human: {}\n", " {}\n", "### Assistant:", ""),
    "vicuna": ("A chat with a kind assistant. ", "USER: {} ", " {}</s>", "ASSISTANT:", "</s>"),
    "alpaca": ("Below is an instruction.\n\n", "### Instruction:\n{}\n\n", "\n{}\n\n", "### Response:", ""),
    "question": ("", "Question: {}\n", " {}\n", "Answer:", ""),
    "qa": ("", "Q: {}\n", " {}\n", "A:", ""),
    "human_ai": ("", "Human: {}\n", " {}\n", "AI:", ""),
}


def written(name: str, turns: list[str], answer: str) -> Written:
    """A conversation in a template: ``turns`` are the user's and the assistant's, by turns, and the answer is the last."""
    before, user, assistant, opening, end = WRITTEN[name]
    begin = before
    for i, turn in enumerate(turns):
        begin += user.format(turn) if i % 2 == 0 else opening + assistant.format(turn)
    begin += opening
    space = " " if assistant.startswith(" ") else "\n" if assistant.startswith("\n") else ""
    return Written(begin, begin + space + answer + end)
