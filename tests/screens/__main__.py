"""Write the files anew: ``python -m tests.screens``."""

from __future__ import annotations

from .made import FOLDER, screens

for name, text in screens().items():
    (FOLDER / name).write_text(text)
    print(FOLDER / name)
