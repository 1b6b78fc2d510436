"""Are vulnerabilities known of what the images hold? ``python -m tests.security`` asks PyPI, then OSV, by pip-audit.

Exit status 1 if there are any; 0 if there are none, or where no service can be reached, which it says.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.docker.pins import pins


def main() -> int:
    """Print one line, and one for each vulnerability."""
    wanted = pins()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requirements.txt"
        file.write_text("".join(f"{name}=={version}\n" for name, version in wanted.items()))
        for service in ("pypi", "osv"):
            options = ["--requirement", str(file), "--no-deps", "--disable-pip", "--vulnerability-service", service]
            done = subprocess.run(
                [sys.executable, "-m", "pip_audit", *options, "--format", "json", "--progress-spinner", "off"],
                capture_output=True,
                text=True,
                check=False,
            )
            try:
                found = json.loads(done.stdout)["dependencies"]
            except (ValueError, KeyError):
                continue
            audited = [one for one in found if "vulns" in one]
            if len(audited) < len(wanted) / 2:  # an index without the service says that it knows none of them
                continue
            known = [(one["name"], one["version"], flaw["id"]) for one in audited for flaw in one["vulns"]]
            skipped = sorted(set(wanted) - {one["name"] for one in audited})
            print(
                f"pip-audit, {service}: {len(audited)} packages, {len(known)} known vulnerabilities"
                + (f"; not known there: {', '.join(skipped)}" if skipped else "")
            )
            for name, version, flaw in known:
                print(f"  {name} {version}: {flaw}")
            return 1 if known else 0
    print(f"pip-audit: no service can be reached; {len(wanted)} packages of the images are NOT audited")
    return 0


if __name__ == "__main__":
    sys.exit(main())
