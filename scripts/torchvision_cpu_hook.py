"""Let a CUDA build of torchvision be imported beside a CPU build of torch.

PyPI's torchvision is a CUDA build. Beside a CPU torch its binary operators do not load, and `import torchvision` stops
with `operator torchvision::nms does not exist`, although the image transforms that processors use are plain Python. The
hook declares the two operators that the import looks up. They get no kernel: calling them raises NotImplementedError.

It must act in every interpreter of the environment, because vLLM inspects model classes in a bare subprocess. So
`python scripts/torchvision_cpu_hook.py` puts a copy into site-packages with a one-line `.pth` file, which Python runs
at start-up; the copy does nothing until torchvision is imported, and nothing at all where the two builds agree.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader

MODULE = "_rlvla_torchvision_cpu"
"""Name of the copy in site-packages."""
OPERATORS = ("nms", "qnms")
"""What torchvision's `_meta_registrations` registers shapes for without asking whether its binaries loaded."""

_kept: list[object] = []
"""torch drops definitions when the object that made them is collected."""


def is_cuda_build(package_folder: str) -> bool:
    """Whether the torchvision in this folder was built for CUDA, by its `version.py` (`0.28.0+cu130`)."""
    try:
        with open(f"{package_folder}/version.py", encoding="utf-8") as file:
            return "+cu" in file.readline()
    except OSError:
        return False


def declare_operators() -> None:
    """Define the schemas that `import torchvision` looks up, unless torch can load the real operators."""
    import torch

    if torch.version.cuda is not None or hasattr(torch.ops.torchvision, OPERATORS[0]):
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in OPERATORS:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)


class DeclaringLoader(SourceFileLoader):
    """Loads torchvision's `__init__` right after its operators have been declared."""

    def exec_module(self, module: object) -> None:
        """Declare, then run the package as usual."""
        declare_operators()
        super().exec_module(module)  # type: ignore[arg-type]


class TorchvisionFinder:
    """A meta path finder that answers for a CUDA-built `torchvision` and for nothing else."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return torchvision's own spec with the declaring loader, or None to leave it to the next finder."""
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name)
        if spec is None or not isinstance(spec.loader, SourceFileLoader) or not spec.submodule_search_locations:
            return None
        if not is_cuda_build(spec.submodule_search_locations[0]):
            return None
        spec.loader = DeclaringLoader(spec.loader.name, spec.loader.path)
        return spec


def install(site_packages: str) -> None:
    """Copy this file into `site_packages` and have every interpreter of that environment load it."""
    with open(__file__, encoding="utf-8") as file:
        source = file.read()
    with open(f"{site_packages}/{MODULE}.py", "w", encoding="utf-8") as file:
        file.write(source)
    with open(f"{site_packages}/{MODULE}.pth", "w", encoding="utf-8") as file:
        file.write(f"import {MODULE}\n")


if __name__ == "__main__":
    import sysconfig

    install(sysconfig.get_path("purelib"))
elif __name__ == MODULE:
    sys.meta_path.insert(0, TorchvisionFinder())  # type: ignore[arg-type]
