"""Python's clients against an API, for the conformance suite: conformance.py CASE WS_URL HTTP_URL"""

import json
import random
import sys
from urllib.parse import quote

import boto3
from botocore.exceptions import ClientError
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.sync.client import connect

case, ws_url, http_url = sys.argv[1:]


def ask(ws, **message):
    ws.send(json.dumps({"action": "echo", **message}))
    return json.loads(ws.recv(timeout=20))


def connection_id(ws):
    return ask(ws)["requestContext"]["connectionId"]


def returning(**response):
    return f"{ws_url}?do=respond&response={quote(json.dumps(response))}"


def management():
    return boto3.client("apigatewaymanagementapi", endpoint_url=http_url)


def close_code(ws):
    try:
        ws.recv(timeout=20)
    except ConnectionClosed as closed:
        return closed.rcvd.code
    raise AssertionError("not closed")


def talks():
    # The library offers permessage-deflate by itself.
    with connect(ws_url) as ws:
        assert "permessage-deflate" in ws.request.headers["Sec-WebSocket-Extensions"]
        event = ask(ws, text="žluťoučký 🐎")
        assert event["requestContext"]["routeKey"] == "echo"
        assert json.loads(event["body"])["text"] == "žluťoučký 🐎"


def compresses():
    fresh = ";server_no_context_takeover"
    for (answer, offer) in [
        # As it does by itself.
        ("12", None),
        # As version 10.0 did when AWS's answer was recorded. That answer says nothing of client_max_window_bits, and
        # the library has kept to its own number since 10.1.
        ("12", ClientPerMessageDeflateFactory(server_max_window_bits=12, client_max_window_bits=12)),
        ("9" + fresh, ClientPerMessageDeflateFactory(True, True, server_max_window_bits=9, client_max_window_bits=9)),
    ]:
        with connect(ws_url, extensions=offer and [offer]) as ws:
            answered = ws.response.headers["Sec-WebSocket-Extensions"]
            assert answered == "permessage-deflate;server_max_window_bits=" + answer, answered
            assert [extension.name for extension in ws.protocol.extensions] == ["permessage-deflate"]
            for text in ["", "žluťoučký 🐎", "žluťoučký 🐎" * 1500, "again", "again"]:
                assert json.loads(ask(ws, text=text)["body"])["text"] == text
            # Too long for a frame in either direction, compressed or not.
            noise = random.Random(7).randbytes(45000).hex()
            ws.send(['{"action":"echo","text":"', noise[:30000], noise[30000:60000], noise[60000:], '"}'])
            assert json.loads(json.loads(ws.recv(timeout=20))["body"])["text"] == noise
            assert ws.ping("are you there").wait(20)


def is_refused():
    try:
        connect(returning(statusCode=403))
    except InvalidStatus as refused:
        assert refused.response.status_code == 403
    else:
        raise AssertionError("not refused")


def pings():
    with connect(ws_url) as ws:
        assert ws.ping("are you there").wait(20)


def sends_fragments():
    with connect(ws_url) as ws:
        ws.send(['{"action":"echo",', '"do":"length","x":"', "x" * 30000, "x" * 30000, '"}'])
        assert int(ws.recv(timeout=20)) == 60000 + 38


def sends_bytes():
    with connect(ws_url) as ws:
        ws.send(b'{"action":"echo"}')
        assert close_code(ws) == 1003


def posts_gets_and_deletes():
    with connect(ws_url, user_agent_header="me/1") as ws:
        (id, api) = (connection_id(ws), management())
        api.post_to_connection(ConnectionId=id, Data=b"hello")
        assert ws.recv(timeout=20) == "hello"
        seen = api.get_connection(ConnectionId=id)
        assert seen["Identity"]["UserAgent"] == "me/1"
        assert seen["LastActiveAt"] >= seen["ConnectedAt"]
        api.delete_connection(ConnectionId=id)
        assert close_code(ws) == 1000


def raises_gone():
    with connect(ws_url) as ws:
        (id, api) = (connection_id(ws), management())
        api.delete_connection(ConnectionId=id)
        close_code(ws)
    for call in [lambda: api.post_to_connection(ConnectionId=id, Data=b"hello"),
                 lambda: api.get_connection(ConnectionId=id),
                 lambda: api.delete_connection(ConnectionId=id)]:
        try:
            call()
        except api.exceptions.GoneException as gone:
            assert gone.response["ResponseMetadata"]["HTTPStatusCode"] == 410
        else:
            raise AssertionError("not gone")


def raises_other_errors():
    with connect(ws_url) as ws:
        (id, api) = (connection_id(ws), management())
        try:
            api.post_to_connection(ConnectionId=id, Data=b"x" * 131073)
        except api.exceptions.PayloadTooLargeException:
            pass
        else:
            raise AssertionError("not too large")
        try:
            api.post_to_connection(ConnectionId="abc", Data=b"hello")
        except ClientError as error:
            assert error.response["Error"]["Code"] == "BadRequestException", error.response
        else:
            raise AssertionError("not a bad request")


globals()[case]()
