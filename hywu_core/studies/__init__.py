"""Studies of what the paper claims, each a command, a table and a figure.

A study is a module `NAME.py` with a `STUDY` (`frame.py`); its line here is all that the command line needs
to know before that module, and torch with it, is imported.
"""

QUESTIONS: dict[str, str] = {
    "conflict": "what becomes of opposite operations in one memory? (paper 5.1)",
    "alignment": "is it the right LoRA for this input that helps, or just a LoRA? (5.3)",
    "gradients": "do operations pull one shared LoRA in different directions? (paper 5.2)",
    "geometry": "are generated LoRAs ordered by what they mean, and where do optimised ones lie? (5.4, 5.5)",
    "scaling": "what do size, rank, tokens and adapted linears bring, and what do they cost? (4.4, R3)",
    "routing": "does an edit land on the operation that was asked for?",
    "quantise": "what is lost with a generator in one or two bytes a weight?",
}
