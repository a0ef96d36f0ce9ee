"""Frozen image-editing models behind one small protocol; their transformers are diffusers' own.

To add one, write a file like `longcat_image_edit.py`: an `EditEncoders` that loads its autoencoder and text
encoder into diffusers' pipeline and calls that, and an `EditBackbone` whose `arguments` are those of the
pipeline's call. Name the latter in `registry.py`, write a tiny folder of it in
`tests/backbones/tiny_folders.py` and a case in `test_pipelines.py`, which compares every argument with the
pipeline's own. What LoRA files of it are named like stands in `lora/architectures.py`.
"""
