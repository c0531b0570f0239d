"""Makes strict JSON schemas for kubeconform out of the OpenAPI document of a Kubernetes version.

    python3 scripts/kubernetes_schemas.py SWAGGER_JSON FOLDER

One file for each kind, named as `kubeconform -schema-location 'FOLDER/{{.ResourceKind}}{{.KindSuffix}}.json'` asks for
it, with all that it refers to inside. Strict: a field that the API does not know is an error, not dropped in silence.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

PREFIX = "#/definitions/"
QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"
INT_OR_STRING = "io.k8s.apimachinery.pkg.util.intstr.IntOrString"
STRING_OR_NUMBER = {"type": ["string", "number"]}


def main(swagger: Path, folder: Path) -> None:
    """Write a schema for each kind that can be applied."""
    definitions = json.loads(swagger.read_text())["definitions"]
    strict = {name: _strict(definition) for name, definition in definitions.items()}
    # These two are written as text or as a number; the document knows of the text alone.
    strict |= {QUANTITY: STRING_OR_NUMBER, INT_OR_STRING: STRING_OR_NUMBER}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, definition in definitions.items():
        kinds = definition.get("x-kubernetes-group-version-kind", [])
        if len(kinds) != 1 or "metadata" not in definition.get("properties", {}):
            continue
        group, version, kind = (kinds[0][part] for part in ("group", "version", "kind"))
        schema = json.loads(json.dumps(strict[name]))
        schema["properties"]["apiVersion"] = {"const": f"{group}/{version}" if group else version}
        schema["properties"]["kind"] = {"const": kind}
        schema["required"] = sorted({*schema.get("required", []), "apiVersion", "kind"})
        schema["definitions"] = {used: strict[used] for used in sorted(_used(strict, name))}
        suffix = f"-{group.split('.')[0]}-{version}" if group else f"-{version}"
        (folder / f"{kind.lower()}{suffix}.json").write_text(json.dumps(schema))


def _strict(node: Any) -> Any:
    """The same schema, with no room for properties that it does not name, and without texts for people."""
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    schema = {
        # A property may be called as a keyword is.
        key: {name: _strict(item) for name, item in value.items()} if key == "properties" else _strict(value)
        for key, value in node.items()
        if key == "properties" or (key != "description" and not key.startswith("x-"))
    }
    if "properties" in schema and isinstance(schema["properties"], dict):
        schema.setdefault("additionalProperties", False)
    return schema


def _used(definitions: dict[str, Any], name: str) -> set[str]:
    """Names of all definitions that `name` refers to, itself included if it does so."""
    found: set[str] = set()
    waiting = [definitions[name]]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            reference = node.get("$ref")
            if isinstance(reference, str) and reference.removeprefix(PREFIX) not in found:
                found.add(reference.removeprefix(PREFIX))
                waiting.append(definitions[reference.removeprefix(PREFIX)])
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
