"""`make deploy` against the imitation: what stands there afterwards, asked through AWS's own APIs."""

import base64
import hashlib
import json
import re

import pytest

from conftest import KEYS, ROOT, line
from imitation import REGION

ACCOUNT = "123456789012"
ROUTES = {
    "$connect": "connect",
    "auth": "connect",
    "$disconnect": "disconnect",
    "$default": "default",
    "sendMessage": "send-message",
}


@pytest.fixture(scope="module")
def deployed(make, aws):
    """Two stages side by side, and what `make deploy` printed for the first."""
    aws.client("apigateway").update_account(
        patchOperations=[{"op": "replace", "path": "/cloudwatchRoleArn", "value": f"arn:aws:iam::{ACCOUNT}:role/logs"}]
    )
    printed = make("deploy", "STAGE=dev", environment=aws.environment)
    make("deploy", "STAGE=prod", environment=aws.environment | KEYS)
    return printed


HANDLERS = [*dict.fromkeys(ROUTES.values()), "publish", "fan-out", "presence"]


def api_of(aws, stage):
    (api,) = [api for api in aws.client("apigatewayv2").get_apis()["Items"] if api["Name"] == f"switchboard-{stage}"]
    return api


def functions_of(aws, stage):
    """By handler."""
    functions = aws.client("lambda").list_functions()["Functions"]
    return {
        function["Handler"]: function
        for function in functions
        if function["FunctionName"].startswith(f"switchboard-{stage}-")
    }


def statements_of(aws, function):
    """Every statement of a function's role."""
    iam = aws.client("iam")
    role = function["Role"].rsplit("/", 1)[1]
    assert not iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]
    names = iam.list_role_policies(RoleName=role)["PolicyNames"]
    policies = [iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"] for name in names]
    return [statement for policy in policies for statement in policy["Statement"] if statement]


def as_list(value):
    return value if isinstance(value, list) else [value]


def test_the_address_and_the_line_to_paste_are_printed(aws, deployed):
    address = f"wss://{api_of(aws, 'dev')['ApiId']}.execute-api.{REGION}.amazonaws.com/dev"
    assert address in deployed
    assert f"wscat -c '{address}?userId=1'" in deployed
    for table in ["switchboard-dev-connections", "switchboard-dev-topics"]:
        assert table in deployed


@pytest.mark.parametrize("stage", ["dev", "prod"])
def test_every_route_has_its_own_function(aws, deployed, stage):
    gateway = aws.client("apigatewayv2")
    api = api_of(aws, stage)
    assert (api["ProtocolType"], api["RouteSelectionExpression"]) == ("WEBSOCKET", "$request.body.action")
    found = {}
    for route in gateway.get_routes(ApiId=api["ApiId"])["Items"]:
        integration = gateway.get_integration(ApiId=api["ApiId"], IntegrationId=route["Target"].split("/")[1])
        assert integration["IntegrationType"] == "AWS_PROXY"
        found[route["RouteKey"]] = integration["IntegrationUri"]
    functions = functions_of(aws, stage)
    expected = {
        route: f"arn:aws:apigateway:{REGION}:lambda:path/2015-03-31/functions/"
        f"{functions[handler]['FunctionArn']}/invocations"
        for route, handler in ROUTES.items()
    }
    assert found == expected


@pytest.mark.parametrize("stage", ["dev", "prod"])
def test_what_runs_is_what_was_zipped_and_no_two_functions_run_the_same(aws, deployed, architecture, stage):
    functions = functions_of(aws, stage)
    for handler, function in functions.items():
        zipped = (ROOT / "target/lambda" / architecture / f"{handler}.zip").read_bytes()
        assert function["CodeSha256"] == base64.b64encode(hashlib.sha256(zipped).digest()).decode(), handler
        assert function["Architectures"] == [architecture]
        assert function["Runtime"] == "provided.al2023"
    assert len({function["CodeSha256"] for function in functions.values()}) == len(HANDLERS)
    assert sorted(functions) == sorted(HANDLERS)


def test_what_runs_is_what_was_tested(aws, deployed, architecture):
    tested = ROOT / "target/lambda" / architecture / "tested.sha256"
    if not tested.exists():
        pytest.skip("`make test-release` has not tested these zips")
    digests = {base64.b64encode(bytes.fromhex(line.split()[0])).decode() for line in tested.read_text().splitlines()}
    assert {function["CodeSha256"] for function in functions_of(aws, "dev").values()} == digests


@pytest.mark.parametrize("stage", ["dev", "prod"])
def test_only_its_own_routes_may_invoke_a_function(aws, deployed, stage):
    api = api_of(aws, stage)["ApiId"]
    functions = functions_of(aws, stage)
    for handler in set(ROUTES.values()):
        policy = json.loads(aws.client("lambda").get_policy(FunctionName=functions[handler]["FunctionName"])["Policy"])
        routes = []
        for statement in policy["Statement"]:
            assert statement["Principal"] == {"Service": "apigateway.amazonaws.com"}
            ((condition, source),) = statement["Condition"].items()
            assert condition == "ArnLike"
            routes.append(source["AWS:SourceArn"].removeprefix(f"arn:aws:execute-api:{REGION}:{ACCOUNT}:{api}/{stage}/"))
        assert sorted(routes) == sorted(route for route, other in ROUTES.items() if other == handler)


@pytest.mark.parametrize("stage", ["dev", "prod"])
def test_every_function_has_a_role_that_stays_within_its_stage(aws, deployed, stage):
    api = api_of(aws, stage)["ApiId"]
    functions = functions_of(aws, stage)
    assert len({function["Role"] for function in functions.values()}) == len(HANDLERS)
    for function in functions.values():
        name = function["FunctionName"]
        own_log = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/aws/lambda/{name}"
        allowed = {
            "logs": re.escape(own_log) + r"(:\*)?",
            "dynamodb": rf"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/switchboard-{stage}-(connections|topics|events|messages)(/stream/.+)?",
            "sqs": rf"arn:aws:sqs:{REGION}:{ACCOUNT}:switchboard-{stage}-publish-failures",
            "execute-api": re.escape(f"arn:aws:execute-api:{REGION}:{ACCOUNT}:{api}/{stage}/")
            + r"(POST|DELETE|GET)/@connections/\*",
        }
        for statement in statements_of(aws, function):
            assert statement["Effect"] == "Allow"
            for action in as_list(statement["Action"]):
                service, operation = action.split(":")
                assert "*" not in operation
                for resource in as_list(statement["Resource"]):
                    assert re.fullmatch(allowed[service], resource), (name, action, resource)


def test_the_stage_is_throttled_and_in_prod_logged(aws, deployed):
    gateway = aws.client("apigatewayv2")
    stages = {stage: gateway.get_stage(ApiId=api_of(aws, stage)["ApiId"], StageName=stage) for stage in ["dev", "prod"]}
    for stage in stages.values():
        settings = stage["DefaultRouteSettings"]
        assert (settings["ThrottlingRateLimit"], settings["ThrottlingBurstLimit"]) == (1000, 2000)
    assert "AccessLogSettings" not in stages["dev"]
    settings = stages["prod"]["AccessLogSettings"]
    assert settings["DestinationArn"].endswith(":log-group:/aws/apigateway/switchboard-prod")
    fields = json.loads(settings["Format"])
    assert fields["route"] == "$context.routeKey"
    groups = aws.client("logs").describe_log_groups(logGroupNamePrefix="/aws/apigateway/")["logGroups"]
    assert [(group["logGroupName"], group["retentionInDays"]) for group in groups] == [
        ("/aws/apigateway/switchboard-prod", 30)
    ]


@pytest.mark.parametrize("stage", ["dev", "prod"])
def test_tables_have_their_keys_and_are_looked_after(aws, deployed, stage):
    dynamodb = aws.client("dynamodb")
    keys = {
        "connections": ["connectionId"],
        "topics": ["topic", "connectionId"],
        "events": ["topic", "id"],
        "messages": ["p", "s"],
    }
    for table, key in keys.items():
        name = f"switchboard-{stage}-{table}"
        described = dynamodb.describe_table(TableName=name)["Table"]
        assert [element["AttributeName"] for element in described["KeySchema"]] == key
        assert described["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
        assert described["SSEDescription"]["Status"] == "ENABLED"
        expiry = dynamodb.describe_time_to_live(TableName=name)["TimeToLiveDescription"]
        assert expiry == {"TimeToLiveStatus": "ENABLED", "AttributeName": "ttl"}
        backups = dynamodb.describe_continuous_backups(TableName=name)["ContinuousBackupsDescription"]
        assert backups["PointInTimeRecoveryDescription"]["PointInTimeRecoveryStatus"] == "ENABLED"


@pytest.mark.parametrize("stage", ["dev", "prod"])
def test_the_streams_start_their_functions_and_failures_are_kept(aws, deployed, stage):
    table = aws.client("dynamodb").describe_table(TableName=f"switchboard-{stage}-events")["Table"]
    assert table["StreamSpecification"] == {"StreamEnabled": True, "StreamViewType": "NEW_IMAGE"}
    mappings = aws.client("lambda").list_event_source_mappings()["EventSourceMappings"]
    for function, batch_size in [("publish", 100), ("fanOut", 1)]:
        (mapping,) = [it for it in mappings if it["FunctionArn"].endswith(f":switchboard-{stage}-{function}")]
        assert mapping["EventSourceArn"] == table["LatestStreamArn"]
        assert (mapping["BatchSize"], mapping["FunctionResponseTypes"]) == (batch_size, ["ReportBatchItemFailures"])
    table = aws.client("dynamodb").describe_table(TableName=f"switchboard-{stage}-topics")["Table"]
    assert table["StreamSpecification"] == {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}
    (mapping,) = [it for it in mappings if it["FunctionArn"].endswith(f":switchboard-{stage}-presence")]
    assert mapping["EventSourceArn"] == table["LatestStreamArn"]
    assert (mapping["BatchSize"], mapping["FunctionResponseTypes"]) == (1000, ["ReportBatchItemFailures"])
    queue = aws.client("sqs").get_queue_url(QueueName=f"switchboard-{stage}-publish-failures")["QueueUrl"]
    assert queue


def test_a_deployment_that_would_lose_a_setting_is_stopped_before_anything_changes(make, aws, deployed):
    email = "ARGS=--param=alarmEmail=me@example.org"
    make("deploy", "STAGE=dev", email, environment=aws.environment)

    def address():
        template = aws.client("cloudformation").get_template(StackName="switchboard-dev")["TemplateBody"]
        return template["Conditions"]["AlarmEmail"]["Fn::Not"][0]["Fn::Equals"][0]

    assert address() == "me@example.org"

    output = make("deploy", "STAGE=dev", environment=aws.environment, succeeds=False)
    assert "has alarmEmail, and this deployment would take that away" in line(output)
    assert "Deploying" not in output and address() == "me@example.org"
    output = make("deploy", "STAGE=prod", "ARGS=--param=allowNoIdentity=yes", environment=aws.environment, succeeds=False)
    assert "has keys, and" in line(output) and "DROP=keys" in line(output)

    make("deploy", "STAGE=dev", environment=aws.environment | {"DROP": "alarmEmail"})
    assert address() == ""


def test_removal_leaves_nothing_but_the_tables_of_prod(make, aws, deployed):
    make("remove", "STAGE=dev", environment=aws.environment)
    make("remove", "STAGE=prod", environment=aws.environment)
    assert aws.client("lambda").list_functions()["Functions"] == []
    assert aws.client("apigatewayv2").get_apis()["Items"] == []
    assert aws.client("s3").list_buckets()["Buckets"] == []
    assert aws.client("iam").list_roles()["Roles"] == []
    assert aws.client("logs").describe_log_groups()["logGroups"] == []
    assert aws.client("sns").list_topics()["Topics"] == []
    assert aws.client("sqs").list_queues().get("QueueUrls", []) == []
    assert aws.client("cloudwatch").describe_alarms()["MetricAlarms"] == []
    assert aws.client("cloudwatch").list_dashboards()["DashboardEntries"] == []
    assert aws.client("lambda").list_event_source_mappings()["EventSourceMappings"] == []
    assert sorted(aws.client("dynamodb").list_tables()["TableNames"]) == [
        f"switchboard-prod-{table}" for table in ["connections", "events", "messages", "topics"]
    ]
