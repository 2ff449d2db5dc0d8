"""What the framework would send to AWS, read by linters that know AWS's rules."""

import json
import pathlib
import subprocess
import sys

import pytest

from conftest import KEYS, ROOT

TOOLS = pathlib.Path(sys.executable).parent


# A stage of its own, with everything switched on that is off otherwise.
SWITCHED = "--param=domain=chat.example.org --param=tracing=Active --param=alarmEmail=me@example.org --param=budget=100"


@pytest.fixture(scope="module", params=["dev", "prod", "switched"])
def template(make, request):
    arguments = f"ARGS={SWITCHED if request.param == 'switched' else ''}"
    make("package", f"STAGE={request.param}", arguments, environment={} if request.param == "dev" else KEYS)
    return ROOT / "target/package" / request.param / "cloudformation-template-update-stack.json"


def test_cloudformation_would_take_it(template):
    # The framework writes down dependencies that are there anyway, and a stage decides its conditions once and for all.
    warnings = ["--ignore-checks", "W3005", "W8003"]
    run(TOOLS / "cfn-lint", *warnings, "--template", template)


def test_it_is_as_safe_as_it_could_be(template):
    run(TOOLS / "checkov", "--config-file", ROOT / "tests/deploy/checkov.yml", "--file", template)


def test_nothing_is_shared(template):
    resources = json.loads(template.read_text())["Resources"]
    # The role and the custom resources that the framework makes on its own may do more than any function here.
    assert "IamRoleLambdaExecution" not in resources
    assert not [name for name in resources if name.startswith("Custom")]
    functions = {name: it["Properties"] for name, it in resources.items() if it["Type"] == "AWS::Lambda::Function"}
    for key in ["Role", "Handler"]:
        assert len({json.dumps(function[key]) for function in functions.values()}) == len(functions), key
    archives = {function["Code"]["S3Key"] for function in functions.values()}
    assert len(archives) == len(functions)
    for function in functions.values():
        assert function["LoggingConfig"] == {
            "LogFormat": "JSON",
            "ApplicationLogLevel": "INFO",
            "SystemLogLevel": "WARN",
        }


def test_what_holds_data_goes_in_dev_and_stays_elsewhere(template):
    policy = "Delete" if template.parent.name == "dev" else "Retain"
    resources = json.loads(template.read_text())["Resources"].values()
    tables = [resource for resource in resources if resource["Type"] == "AWS::DynamoDB::Table"]
    assert tables and all(table["DeletionPolicy"] == table["UpdateReplacePolicy"] == policy for table in tables)
    # CloudFormation could not delete a protected table, so a table that goes with its stack has no protection.
    is_protected = policy == "Retain"
    assert all(table["Properties"]["DeletionProtectionEnabled"] is is_protected for table in tables)


def test_every_name_carries_the_stage(template):
    stage = template.parent.name
    resources = json.loads(template.read_text())["Resources"]
    for logical_id, resource in resources.items():
        properties = resource.get("Properties", {})
        for key in ["Name", "FunctionName", "TableName", "LogGroupName", "TopicName", "AlarmName", "DashboardName", "QueueName"]:
            name = properties.get(key)
            if isinstance(name, str):
                assert f"switchboard-{stage}" in name, (logical_id, name)


def run(*command):
    result = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout
