"""What the tests share: the repository, its make targets, and an imitation of AWS."""

import json
import os
import pathlib
import subprocess

import pytest

from imitation import Aws

ROOT = pathlib.Path(__file__).parents[2]

# Keys of the examples in RFC 7517, appendix A.
PUBLIC = {
    "kty": "EC",
    "crv": "P-256",
    "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
    "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
}
PRIVATE = PUBLIC | {"d": "870MB6gfuTJ4HtUnUvYMyJpr5eUZNP4Bk43bVdj3eAE"}
SECRET = {"kty": "oct", "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}


def jwks(*keys):
    return json.dumps({"keys": keys})


# What a stage other than dev needs from the environment.
KEYS = {"TOKEN_KEYS": jwks(PUBLIC)}


def line(output):
    """The one line that is ours."""
    (line,) = [line for line in output.splitlines() if line.startswith("switchboard: ") and "building for" not in line]
    return line


@pytest.fixture(scope="session")
def make():
    """Runs a make target at the root; what it prints is shown when a test fails."""

    def run(*arguments, environment=None, succeeds=True):
        # Not through the `make` that runs the tests, whose flags would be inherited.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MAKE", "MFLAGS", "TOKEN_"))}
        # No profile of whoever runs the tests: nothing here may reach an account.
        private = {"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_EC2_METADATA_DISABLED": "true"}
        result = subprocess.run(
            ["make", *arguments],
            cwd=ROOT,
            env=inherited | private | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        print(result.stdout)
        assert (result.returncode == 0) == succeeds, result.stdout
        return result.stdout

    return run


@pytest.fixture(scope="session")
def architecture():
    """What this machine builds for."""
    output = subprocess.run(["infra/architecture.sh"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return output.stdout.strip()


@pytest.fixture(scope="session")
def aws():
    aws = Aws()
    yield aws
    aws.stop()


@pytest.fixture
def service(tmp_path):
    """A copy of the service whose serverless.yml a test may change, with an empty file for each zip."""
    (tmp_path / "infra").symlink_to(ROOT / "infra")
    text = (ROOT / "serverless.yml").read_text()
    (tmp_path / "serverless.yml").write_text(text)
    archives = tmp_path / "target/lambda/arm64"
    archives.mkdir(parents=True)
    for handler in [row.split()[1] for row in text.splitlines() if row.strip().startswith("handler:")]:
        (archives / f"{handler}.zip").touch()
    return tmp_path


def replace(service, old, new):
    file = service / "serverless.yml"
    assert file.read_text().count(old) == 1, old
    file.write_text(file.read_text().replace(old, new))


def package(service, stage, keys="", *arguments, **variables):
    """The template that the framework itself makes for a stage, without our scripts."""
    command = [ROOT / "infra/node_modules/.bin/serverless", "package", "--stage", stage, *arguments]
    environment = os.environ | {"TOKEN_KEYS": keys} | variables
    result = subprocess.run(command, cwd=service, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout
    return json.loads((service / ".serverless/cloudformation-template-update-stack.json").read_text())
