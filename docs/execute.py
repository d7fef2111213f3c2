"""Runs the notebooks of docs/examples and writes them with their outputs (extra "examples").

python docs/execute.py
"""

from pathlib import Path

import nbclient
import nbformat

for path in sorted((Path(__file__).resolve().parent / "examples").glob("*.ipynb")):
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, record_timing=False, coalesce_streams=True, kernel_name="python3")
    client.execute()
    notebook.metadata.pop("language_info")  # the Python that it ran on
    nbformat.write(notebook, path)
    print(path.name)
