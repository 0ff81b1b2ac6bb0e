"""The software bill of materials of a bundle, CycloneDX 1.6.

In: the model and the runtime's archives. Out: JSON; the same for the same bundle.
"""

from __future__ import annotations

import email
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

BEGIN = datetime(1980, 1, 1, tzinfo=UTC)  # as the archives': a bundle does not tell when


def bill_of_materials(
    name: str, version: str, licence: str, sha256: str, archives: Sequence[Path],
    others: Sequence[tuple[str, str]],
) -> str:
    """Return the SBOM of a bundle.

    Args:
        name: Of the model.
        version: Of the bundle.
        licence: Of the model.
        sha256: Of the artifact.
        archives: Zips of unpacked wheels; what each is, its METADATA tells.
        others: Names and versions of packages that the archives do not tell of.
    """
    model = Component(name=name, version=version, type=ComponentType.MACHINE_LEARNING_MODEL,
                      bom_ref=f"model:{name}@{version}",
                      hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)],
                      licenses=[DisjunctiveLicense(name=licence)])
    packages = {component.name: component for archive in archives
                for component in _packages(archive)}
    for other, its_version in others:
        packages.setdefault(other, _package(other, its_version, None))
    bom = Bom(components=packages.values(), metadata=BomMetaData(component=model, timestamp=BEGIN),
              serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"edgeprune:{name}:{version}"))
    bom.register_dependency(model, packages.values())
    return make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2)


def _packages(archive: Path) -> Iterator[Component]:
    with zipfile.ZipFile(archive) as packed:
        for entry in packed.namelist():
            if entry.endswith(".dist-info/METADATA"):
                told = email.message_from_bytes(packed.read(entry))
                yield _package(told["Name"], told["Version"],
                               told["License-Expression"] or told["License"])


def _package(name: str, version: str, licence: str | None) -> Component:
    first = (licence or "").strip().splitlines()[:1]  # some put the whole text there
    return Component(
        name=name, version=version, bom_ref=f"pypi:{name}@{version}",
        purl=PackageURL("pypi", name=name.lower(), version=version),
        licenses=[DisjunctiveLicense(name=first[0][:100])] if first else [])
