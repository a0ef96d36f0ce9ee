"""The workflow files, drawn: `python -m tests.comfyui.drawn` writes them to `workflows/` anew."""
