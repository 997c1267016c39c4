"""The notebook, executed with the local package and a few training steps."""

import json
import os

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import FLAGS
from tests.source import ROOT

NOTEBOOK = ROOT / "launch" / "colab.ipynb"

SMALL = """
SOURCE = "not used"
STEPS = 2
PER_CLASS = 2

from configs import demo

full = demo.get_config
demo.get_config = lambda arg: full(
    f"{arg},model.depth=1,model.width=32,model.mlp_width=64,model.cross_mlp_width=32"
    ",train.batch_size=8,evaluation.batch_size=16,log.tensorboard=False"
)

from data_pipelines.builders.doodles import generation

drawn = generation.generate
generation.generate = lambda seed, _, workers, **options: drawn(seed, 4, workers=0, **options)
"""


def cells():
    return nbformat.read(NOTEBOOK, as_version=4).cells


def test_the_notebook_has_no_outputs():
    code = [cell for cell in cells() if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert json.loads(NOTEBOOK.read_text())["metadata"]["kernelspec"]["name"] == "python3"


def test_code_cells_are_short_and_explained():
    explained = False
    for cell in cells():
        if cell.cell_type == "markdown":
            explained = True
        else:
            assert explained, cell.source
            assert len(cell.source.splitlines()) <= 30, cell.source


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    flags = [x for x in FLAGS if "device_count" not in x]  # one device, as in Colab
    monkeypatch.setenv("XLA_FLAGS", " ".join(flags))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    [place] = [
        i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", [])
    ]
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(SMALL))
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    outputs = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    text = "".join(out.get("text", "") for out in outputs)
    pictures = [out for out in outputs if "image/png" in out.get("data", {})]
    assert len(pictures) == 2
    assert "ZSE, 64 pixels: ['token', 'relation']" in text
    assert "http://127.0.0.1:" in text
    assert (tmp_path / "zse_work/model/README.md").is_file()
    assert (tmp_path / "zse_work/run/metrics.json").is_file()
