"""What the documents call by name is there: classes, files, methods, the rules of the design."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "blockmig"
# What has changed, and what was measured, may speak of names that are gone.
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "performance.md"),
]
# Names of other people's.
OTHERS = {
    *("TypeMachineBuilder", "AllowStreamLocalForwarding", "ControlMaster", "RemoteCommand"),
    *("LoadCredential", "MemoryDenyWriteExecute", "ReadWritePaths", "SupplementaryGroups"),
    *("ExecReload", "TimeoutStartSec"),
    *("OpenSSL", "IOpenSSLServerConnectionCreator", "IOpenSSLClientConnectionCreator"),
}
UNITS = {"MiB", "GiB"}


def texts() -> Iterator[str]:
    for module in [*SOURCE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        yield module.read_text()


def in_backticks(document: Path) -> list[str]:
    prose = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.S | re.M)
    return re.findall(r"`([^`\n]+)`", prose)


def drawn(document: Path) -> str:
    """The diagrams made of characters."""
    return "\n".join(re.findall(r"^```text\n(.*?)^```$", document.read_text(), re.S | re.M))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_classes_that_are_named_exist(document: Path) -> None:
    known = OTHERS | UNITS
    for text in texts():
        known |= set(re.findall(r"^ *class (\w+)", text, re.M))
    named = {match for text in in_backticks(document) for match in words(text)}
    if document.name == "architecture.md":
        named |= set(words(drawn(document)))
    assert named - known == set()


def test_the_methods_in_the_architecture_exist() -> None:
    document = ROOT / "docs" / "architecture.md"
    defined = {name for text in texts() for name in re.findall(r"def (\w+)\(", text)}
    shown = "\n".join([drawn(document), *in_backticks(document)])
    assert set(re.findall(r"\b[A-Z]\w+\.([a-z_]\w+)", shown)) - defined == set()


def words(text: str) -> list[str]:
    """The names in CamelCase: at least two capitals, and a small letter before the second."""
    return re.findall(r"\b_?I?[A-Z][a-z]+(?:[A-Z]+[a-z]*)+\b", text)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_files_that_are_named_exist(document: Path) -> None:
    for text in in_backticks(document):
        if re.fullmatch(r"[\w./-]+/[\w.-]*|[\w/-]+\.(py|md)", text) and "/" in text.strip("/"):
            places = (ROOT, SOURCE, ROOT / "src")
            if text.startswith("/") or text.split("/")[0] in ("dev", "web.img"):
                continue
            assert any((place / text).exists() for place in places), f"{document.name}: {text}"


def test_each_rule_that_a_module_cites_is_written_out() -> None:
    written = set(re.findall(r"^- \*\*(R\d+)\.", (ROOT / "docs" / "design.md").read_text(), re.M))
    assert written == {f"R{number}" for number in range(1, 14)}
    sections = set(re.findall(r"^## (\d)\. ", (ROOT / "docs" / "design.md").read_text(), re.M))
    for text in texts():
        for cited in re.findall(r"design, sections? (\d)", text):
            assert cited in sections
