"""Metadata of the package that depend on where it is published: the README as an index shows it, and addresses.

An index shows the README away from the repository, where its relative links lead nowhere. The address of the
repository is said once, in ``pyproject.toml``; while it is empty, links and pictures are replaced by their texts.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

__all__ = ["MetadataHook", "addresses", "description"]

BRANCH = "main"
_CODE = r"```.*?```|`[^`]*`"
_LINK = re.compile(rf"{_CODE}|(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)", flags=re.DOTALL)


class MetadataHook(MetadataHookInterface):
    """Fills in the fields that ``pyproject.toml`` calls dynamic."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the long description, and the addresses if they are known."""
        address = self.config.get("address", "").rstrip("/")
        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": description(readme, address)}
        if address:
            metadata["urls"] = addresses(address)


def addresses(address: str) -> dict[str, str]:
    """Return the addresses of a project whose repository has this one."""
    files = f"{address}/blob/{BRANCH}"
    return {
        "Source": address,
        "Documentation": f"{files}/README.md",
        "Changelog": f"{files}/CHANGELOG.md",
        "Issues": f"{address}/issues",
    }


def description(readme: str, address: str) -> str:
    """Return a README whose links lead somewhere wherever it is shown.

    Args:
        readme: the README, in Markdown, whose relative links are paths from the repository's root.
        address: address of the repository, without a slash at its end; empty where it is not known.
    """

    def resolved(link: re.Match[str]) -> str:
        picture, text, target = link["picture"], link["text"], link["target"]
        if target is None or re.match(r"[a-z]+:|#", target):  # code, or a link that needs no repository
            return link[0]
        if not address:
            return f"*{text}*" if picture else text
        return f"{picture}[{text}]({address}/{'raw' if picture else 'blob'}/{BRANCH}/{target})"

    return _LINK.sub(resolved, readme)
