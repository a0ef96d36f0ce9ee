"""`python -m hywu_core.edit PHOTO "instruction"`: edit one photograph with a LoRA written for it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from .cli import command, require
from .devices import resolve_device
from .embedded import GENERATOR
from .errors import HywuError
from .images import check_file_path, check_image_path, load_photo, save_image, save_sheet, to_pil
from .lora import save_adapter
from .pipeline import DEFAULT_STEPS, HywuPipeline

_LARGEST_STRENGTH = 1e30  # times the LoRA's scale it is still a float32


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(
        prog="python -m hywu_core.edit",
        description="Edit a photograph: a transformer looks at it and at your words, writes a LoRA for "
        "them, and a small FLUX Kontext edits with it. Runs on a CPU; the result has about 256 x 256 pixels.",
    )
    parse.add_argument("photo", type=Path, help="a photograph of any size (JPEG, PNG, WebP, TIFF ...)")
    parse.add_argument("instruction", help='what to do, such as "make it look like an old faded photograph"')
    parse.add_argument(
        "-o", "--out", type=Path, default=Path("edited.png"), help="the edited picture (%(default)s)"
    )
    parse.add_argument("--adapter-out", type=Path, help="also save the generated LoRA as .safetensors")
    parse.add_argument(
        "--compare", action="store_true", help="also write OUT_compare: source, frozen base, HY-WU"
    )
    parse.add_argument("--generator", type=Path, help="another generator file, such as one you trained")
    parse.add_argument("--seed", type=int, default=0, help="seed of the noise (%(default)s)")
    parse.add_argument(
        "--strength", type=float, default=1.0, help="factor on the generated LoRA (%(default)s)"
    )
    parse.add_argument("--steps", type=int, default=DEFAULT_STEPS, help="sampling steps (%(default)s)")
    parse.add_argument("--device", default="cpu", help="cpu, cuda, mps, auto ... (%(default)s)")
    return parse


def check(arguments: argparse.Namespace) -> None:
    """Everything that can be wrong, before any model loads."""
    if not arguments.instruction.strip():
        raise HywuError("The instruction is empty; say in a few words what to do with the photograph.")
    try:
        arguments.instruction.encode()
    except UnicodeEncodeError:
        raise HywuError("The instruction has bytes that are not text in this terminal's encoding.") from None
    if not abs(arguments.strength) <= _LARGEST_STRENGTH:  # nor is it nan
        raise HywuError(
            f"--strength is {arguments.strength}; it must be a number from {-_LARGEST_STRENGTH:g} "
            f"to {_LARGEST_STRENGTH:g}."
        )
    if not 0 <= arguments.seed < 2**64:  # as KSampler's
        raise HywuError(f"--seed is {arguments.seed}; it must be between 0 and 2^64 - 1.")
    if not 1 <= arguments.steps <= 1000:
        raise HywuError(f"--steps is {arguments.steps}; it must be between 1 and 1000.")
    require("diffusers")
    resolve_device(arguments.device)
    check_image_path(arguments.out)
    if arguments.adapter_out is not None:
        if arguments.adapter_out.suffix != ".safetensors":
            raise HywuError(f"--adapter-out {arguments.adapter_out} must end in .safetensors.")
        check_file_path(arguments.adapter_out)
    inputs = (arguments.photo, arguments.generator or GENERATOR)
    for output in _outputs(arguments):
        if output.exists() and any(path.exists() and output.samefile(path) for path in inputs):
            raise HywuError(f"{output} would overwrite what is read; choose another name for the result.")


def _outputs(arguments: argparse.Namespace) -> list[Path]:
    """The files that will be written: the picture, the comparison, the adapter."""
    out = arguments.out
    compare = [out.with_name(f"{out.stem}_compare{out.suffix}")] if arguments.compare else []
    return [out, *compare, *([arguments.adapter_out] if arguments.adapter_out is not None else [])]


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = parser().parse_args(argv)
    check(arguments)
    photo = load_photo(arguments.photo)
    pipeline = HywuPipeline.from_embedded(arguments.generator, resolve_device(arguments.device))
    passes = 2 if arguments.compare else 1
    with tqdm(total=passes * arguments.steps, desc="editing", unit="step") as bar:
        request = pipeline.read(photo, [arguments.instruction])
        adapter = pipeline.write(request)
        settings = {"seed": arguments.seed, "steps": arguments.steps, "on_step": lambda _: bar.update()}
        edited = pipeline.draw(request, adapter, strength=arguments.strength, **settings)
        base = pipeline.draw(request, None, **settings) if arguments.compare else None
    outputs = _outputs(arguments)
    with _all_or_none(outputs):
        save_image(to_pil(edited[0]), arguments.out)
        if base is not None:
            row = (arguments.instruction, (request.source[0], base[0], edited[0]))
            save_sheet([row], ("photograph", "frozen base", "HY-WU"), outputs[1])
        if arguments.adapter_out is not None:
            save_adapter(adapter, arguments.adapter_out, strength=arguments.strength)
    print(f"Wrote {', '.join(str(path) for path in outputs)}.")  # noqa: T201
    return 0


@contextmanager
def _all_or_none(outputs: Sequence[Path]) -> Iterator[None]:
    """When writing one of the files fails, those that were not there before go away again."""
    new = [path for path in outputs if not path.exists()]
    try:
        yield
    except BaseException:
        for path in new:
            path.unlink(missing_ok=True)
        raise


if __name__ == "__main__":
    sys.exit(command(main))
