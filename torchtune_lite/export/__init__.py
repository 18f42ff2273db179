"""Models in the files that other programs take, and the way back from a GGUF."""

from torchtune_lite.export.gguf.importing import import_gguf
from torchtune_lite.export.kinds import Options, export_model
from torchtune_lite.export.merging import merge
from torchtune_lite.export.source import Source, open_source

__all__ = ["Options", "Source", "export_model", "import_gguf", "merge", "open_source"]
