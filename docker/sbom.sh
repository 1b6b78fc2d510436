#!/bin/sh
# What the images hold besides Debian and Python, as a CycloneDX bill of materials: requirements.txt, and torch.
#     pip install cyclonedx-bom && sh docker/sbom.sh > fedsim.cdx.json
set -eu
cd "$(dirname "$0")"
torch=$(sed -n 's/^ARG TORCH=//p' client.Dockerfile)
{ cat requirements.txt; echo "torch==$torch"; } | cyclonedx-py requirements --output-reproducible --short-PURLs -
