"""AWS as far as a deployment needs it: moto's server, and the resource types that moto's CloudFormation lacks.

moto has the services behind those types, so each is made and deleted through the server's own API: the properties of a
resource in a template are, with few exceptions, the parameters of the call that makes one.
"""

import json
import uuid

import boto3
from botocore.exceptions import ClientError
from moto.cloudformation import models as cloudformation
from moto.cloudformation import parsing
from moto.core.common_models import CloudFormationModel
from moto.dynamodb.models.table import Table
from moto.iam.models import Role
from moto.server import ThreadedMotoServer

REGION = "us-east-1"


class Aws:
    """A running imitation of AWS, empty."""

    def __init__(self):
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.server.start()
        host, port = self.server.get_host_and_port()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": REGION,
        }
        _add_missing_types(self.client)

    def client(self, service):
        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    def stop(self):
        self.server.stop()


def _add_missing_types(client):
    api = lambda: client("apigatewayv2")

    def alarm(properties):
        client("cloudwatch").put_metric_alarm(**properties)
        return properties["AlarmName"]

    def part_of_api(kind, key):
        create = lambda properties: getattr(api(), f"create_{kind}")(**properties)[key]

        def delete(name, properties):
            try:
                getattr(api(), f"delete_{kind}")(ApiId=properties["ApiId"], **{key: name})
            except ClientError as error:
                # moto deletes in any order, and an API goes with its parts.
                if error.response["Error"]["Code"] != "NotFoundException":
                    raise

        return create, delete

    types = {
        "AWS::ApiGatewayV2::Api": (
            lambda properties: api().create_api(**properties)["ApiId"],
            lambda name, _: api().delete_api(ApiId=name),
        ),
        "AWS::ApiGatewayV2::Integration": part_of_api("integration", "IntegrationId"),
        "AWS::ApiGatewayV2::Route": part_of_api("route", "RouteId"),
        "AWS::ApiGatewayV2::Stage": part_of_api("stage", "StageName"),
        # moto's gateway has no deployments.
        "AWS::ApiGatewayV2::Deployment": (lambda _: uuid.uuid4().hex[:10], lambda *_: None),
        "AWS::CloudWatch::Alarm": (alarm, lambda name, _: client("cloudwatch").delete_alarms(AlarmNames=[name])),
        # It refuses whatever comes without TLS, as everything does here.
        "AWS::S3::BucketPolicy": (lambda properties: properties["Bucket"], lambda *_: None),
    }
    for kind, (create, delete) in types.items():
        _add_type(kind, create, delete)
    _keep_what_moto_drops(client)
    # moto refuses a template for what cfn-lint only warns of; test_templates.py asks cfn-lint itself.
    cloudformation.validate_template_cfn_lint = lambda template: []


def _add_type(kind, create, delete):
    class Model(CloudFormationModel):
        # moto files its models under the service that their module names.
        __module__ = f"moto.{kind.split('::')[1].lower()}.models"

        def __init__(self, properties):
            self.properties = properties
            self.physical_resource_id = create(properties)

        def delete(self, *_):
            delete(self.physical_resource_id, self.properties)

        def is_created(self):
            return True

        cloudformation_name_type = staticmethod(lambda: "")
        cloudformation_type = staticmethod(lambda: kind)
        has_cfn_attr = classmethod(lambda cls, attribute: False)

        @classmethod
        def create_from_cloudformation_json(cls, name, resource, *_, **__):
            return cls(resource["Properties"])

    _kept.append(Model)


# moto finds types among the subclasses that exist; a class that nobody holds would not.
_kept = []


def _keep_what_moto_drops(client):
    """Expiry, recovery and encryption of tables, what a role may do, and items of lists that a condition leaves out."""

    def created(model, before=lambda properties: None, after=lambda resource, properties: None):
        original = model.create_from_cloudformation_json

        def create(resource_name, cloudformation_json, *arguments, **keywords):
            properties = cloudformation_json["Properties"]
            before(properties)
            resource = original(resource_name, cloudformation_json, *arguments, **keywords)
            after(resource, properties)
            return resource

        model.create_from_cloudformation_json = create

    def encrypt(properties):
        # CloudFormation's name of what DynamoDB calls `Enabled`.
        properties["SSESpecification"]["Enabled"] = properties["SSESpecification"]["SSEEnabled"]

    def look_after(table, properties):
        dynamodb = client("dynamodb")
        expiry, recovery = properties["TimeToLiveSpecification"], properties["PointInTimeRecoverySpecification"]
        dynamodb.update_time_to_live(TableName=table.name, TimeToLiveSpecification=expiry)
        dynamodb.update_continuous_backups(TableName=table.name, PointInTimeRecoverySpecification=recovery)

    def write_policies(properties):
        for policy in properties["Policies"]:
            policy["PolicyDocument"] = json.dumps(policy["PolicyDocument"])

    created(Table, before=encrypt, after=look_after)
    created(Role, before=write_policies)

    original = parsing.clean_json

    def clean_json(value, resources):
        value = original(value, resources)
        return [item for item in value if item is not None] if isinstance(value, list) else value

    parsing.clean_json = clean_json
