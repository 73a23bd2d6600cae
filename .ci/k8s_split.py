#!/usr/bin/env python3
"""Rendered manifests as one file an object, for checkers that want that; or whether files hold the same objects.

Objects of kinds that operators define are left out of the folder: their schemas are theirs.

Usage: k8s_split.py RENDERED FOLDER
       k8s_split.py --same RENDERED FILE ...      exit code 1 when they do not
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

_OF_OPERATORS = ("monitoring.coreos.com/", "keda.sh/")


def objects(*paths: Path) -> list[dict[str, Any]]:
    """All objects in these files, by kind and name."""
    found = [doc for path in paths for doc in yaml.safe_load_all(path.read_text()) if doc]
    return sorted(found, key=lambda doc: (doc["kind"], doc["metadata"]["name"]))


def main(words: list[str]) -> int:
    if words[0] == "--same":
        rendered, plain = objects(Path(words[1])), objects(*map(Path, words[2:]))
        if rendered != plain:
            wrong = [doc["metadata"]["name"] for doc in rendered + plain if (doc in rendered) is not (doc in plain)]
            sys.stderr.write(f"k8s/ and its Kustomization do not give the same objects: {sorted(set(wrong))}\n")
            return 1
        return 0
    folder = Path(words[1])
    folder.mkdir()
    for number, doc in enumerate(objects(Path(words[0]))):
        if not doc["apiVersion"].startswith(_OF_OPERATORS):
            path = folder / f"{number:02d}-{doc['kind']}-{doc['metadata']['name']}.yaml"
            path.write_text(yaml.safe_dump(doc))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
