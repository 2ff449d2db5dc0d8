//! HS: the handshake.

use std::time::{Duration, Instant};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use serde_json::json;
use switchboard_tests::wire::{CONTINUATION, Client, RSV1, Reply, TEXT};
use tokio::io::AsyncWriteExt;

use crate::api::{Api, connect_returns, route_key};
use crate::table::{FLAGS, LOG, Row, SERVICE, row};

/// A flush of a compressor ends with these bytes, and a message is sent without them (RFC 7692, section 7.2.1).
const FLUSHED: [u8; 4] = [0, 0, 0xff, 0xff];

/// The status of a handshake with this query, which `$connect` obeys.
async fn status(api: &Api, query: &str) -> u16 {
    api.handshake(query, &[]).await.reply.status
}

/// A handshake that offers `chat1,myprotocol` to a `$connect` which answers `response`.
async fn offer(api: &Api, response: serde_json::Value) -> Client {
    api.handshake(&connect_returns(&response), &[("Sec-WebSocket-Protocol", "chat1,myprotocol")]).await
}

async fn chooses_myprotocol(api: &Api, response: serde_json::Value) {
    let client = offer(api, response).await;
    assert_eq!((client.reply.status, client.reply.header("sec-websocket-protocol")), (101, Some("myprotocol")));
}

/// Makes the offer whose answer on AWS is recorded, and talks both ways as the two have agreed. Returns the answer, if
/// there is one.
async fn talks_of_compression(api: &Api) -> Option<String> {
    let offer = "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12";
    let mut client = api.handshake("", &[("Sec-WebSocket-Extensions", offer)]).await;
    assert_eq!(client.reply.status, 101);
    let answer = client.reply.header("sec-websocket-extensions").map(str::to_owned);
    let (mut deflate, mut inflate) = (
        Compress::new_with_window_bits(Compression::default(), false, 12),
        Decompress::new_with_window_bits(false, 12),
    );
    for number in 0..3 {
        let token = format!("{}{number}", api.token());
        let text = json!({"action": "echo", "text": token.repeat(1000)}).to_string();
        if answer.is_some() {
            let mut compressed = Vec::with_capacity(text.len() + 100);
            deflate.compress_vec(text.as_bytes(), &mut compressed, FlushCompress::Sync).unwrap();
            assert!(compressed.ends_with(&FLUSHED));
            client.frame(true, RSV1 | TEXT, &compressed[..compressed.len() - FLUSHED.len()]).await;
        } else {
            client.text(&text).await;
        }
        let first = client.receive().await;
        let (is_compressed, mut fin, mut payload) = (first.opcode == RSV1 | TEXT, first.fin, first.payload);
        assert_eq!(first.opcode & !RSV1, TEXT);
        assert!(answer.is_some() || !is_compressed, "compressed, and that was not agreed on");
        while !fin {
            let frame = client.receive().await;
            assert_eq!(frame.opcode, CONTINUATION);
            payload.extend(frame.payload);
            fin = frame.fin;
        }
        if is_compressed {
            payload.extend(FLUSHED);
            let mut message = Vec::with_capacity(128 * 1024);
            inflate.decompress_vec(&payload, &mut message, FlushDecompress::Sync).unwrap();
            payload = message;
        }
        let event: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!(event["body"], text);
    }
    assert_eq!(client.close(1000, "").await, Some(1000));
    answer
}

pub fn rows() -> Vec<Row> {
    vec![
        row("HS-01", "D", "D-connect", "the stage's URL connects, and $connect runs once and before the 101").ours(
            LOG,
            |api| async move {
                let token = api.token();
                let mut client = api.connect_with(&format!("?{token}=1"), &[]).await;
                assert_eq!(api.events(&token).len(), 1);
                api.claim_invoked(&token, &["$connect"]);
                assert_eq!(client.close(1000, "").await, Some(1000));
            },
        ),
        row("HS-02", "D", "D-wscat", "the stage's URL with a trailing slash connects as well").anywhere(
            |api| async move {
                let path = format!("{}/", api.endpoint.stage_path);
                assert_eq!(api.handshake_path(&path, &[]).await.reply.status, 101);
            },
        ),
        row("HS-03", "D+O", "D-intreq", "a query reaches $connect in both forms").ours(LOG, |api| async move {
            let token = api.token();
            api.connect_with(&format!("?userId={token}"), &[]).await;
            let event = api.event_with(&token).await;
            assert_eq!(event["queryStringParameters"], json!({"userId": token}));
            assert_eq!(event["multiValueQueryStringParameters"], json!({"userId": [token]}));
        }),
        row("HS-04", "I", "aws-sdk-php#1955", "an unknown stage is a 403 and reaches no function").anywhere(
            |api| async move {
                let token = api.token();
                let refused = api.handshake_path(&format!("/nostage?{token}=1"), &[]).await.reply;
                assert_eq!((refused.status, refused.body.as_str()), (403, r#"{"message":"Forbidden"}"#));
                api.claim_invoked(&token, &[]);
            },
        ),
        row("HS-05", "I", "D-auth", "a path below the stage is a 403 and reaches no function").anywhere(
            |api| async move {
                let token = api.token();
                let path = format!("{}/extra?{token}=1", api.endpoint.stage_path);
                assert_eq!(api.handshake_path(&path, &[]).await.reply.status, 403);
                api.claim_invoked(&token, &[]);
            },
        ),
        row("HS-06", "O", "serverless-offline#674", "a plain GET is a 426 and reaches no function").anywhere(
            |api| async move {
                let token = api.token();
                let (path, host) = (&api.endpoint.stage_path, &api.endpoint.authority);
                let mut tcp = api.endpoint.dial().await;
                tcp.write_all(format!("GET {path}?{token}=1 HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())
                    .await
                    .unwrap();
                assert_eq!(Reply::read(&mut tcp).await.status, 426);
                api.claim_invoked(&token, &[]);
            },
        ),
        row("HS-07", "D", "D-connect; localstack#4039", "the 101 comes after a slow $connect, not before").anywhere(
            |api| async move {
                let began = Instant::now();
                assert_eq!(status(&api, "?do=sleep&ms=1000").await, 101);
                assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
            },
        ),
        row("HS-08", "I", "D-connect", "a $connect that returns 204 connects").anywhere(|api| async move {
            assert_eq!(status(&api, &connect_returns(&json!({"statusCode": 204}))).await, 101);
        }),
        row("HS-09", "D", "D-subproto", "a $connect that returns 400 refuses with 400").anywhere(|api| async move {
            assert_eq!(status(&api, &connect_returns(&json!({"statusCode": 400}))).await, 400);
        }),
        row(
            "HS-10",
            "O",
            "serverless-offline#1301; D-connect",
            "401, 403, 404, 500 and 503 of $connect are the client's",
        )
        .anywhere(|api| async move {
            for code in [401, 403, 404, 500, 503] {
                assert_eq!(status(&api, &connect_returns(&json!({"statusCode": code}))).await, code);
            }
        }),
        row("HS-11", "I", "chalice#1768", "a $connect that returns 302 refuses with it, without Location").anywhere(
            |api| async move {
                let response = json!({"statusCode": 302, "headers": {"Location": "https://example.com/"}});
                let client = api.handshake(&connect_returns(&response), &[]).await;
                assert_eq!((client.reply.status, client.reply.header("location")), (302, None));
            },
        ),
        row(
            "HS-12",
            "D+O",
            "L-apigw; serverless-websockets-plugin#13; websockets-chat#1; aws-lambda-graphql#107; guide#644",
            "a $connect that fails is a 502",
        )
        .anywhere(|api| async move {
            assert_eq!(status(&api, "?do=error").await, 502);
        }),
        row(
            "HS-13",
            "D+I",
            "L-apigw; RIE",
            "a $connect whose process exits is a 502, and the next one has a new process",
        )
        .anywhere(|api| async move {
            assert_eq!(status(&api, "?do=exit").await, 502);
            assert_eq!(status(&api, "").await, 101);
        }),
        row("HS-14", "D+I", "L-apigw", "a $connect that returns {\"ok\":true} is a 502").anywhere(|api| async move {
            for response in [json!({"ok": true}), json!({"statusCode": 200, "ok": true})] {
                assert_eq!(status(&api, &connect_returns(&response)).await, 502, "{response}");
            }
        }),
        row("HS-15", "D+I", "L-apigw", "a $connect that returns a string or null is a 502").anywhere(
            |api| async move {
                for response in [json!("text"), json!(null)] {
                    assert_eq!(status(&api, &connect_returns(&response)).await, 502, "{response}");
                }
            },
        ),
        row("HS-16", "D+I", "L-apigw", "a $connect that outlives its function's timeout is a 502").ours(
            SERVICE,
            |_| async move {
                let handler = "connect:\n    handler: fixture";
                let api = Api::edited(&[(handler, &format!("{handler}\n    timeout: 1"))], &[]).await;
                let began = Instant::now();
                assert_eq!(status(&api, "?do=sleep&ms=60000").await, 502);
                assert!(began.elapsed() >= Duration::from_secs(1) && began.elapsed() < Duration::from_secs(15));
            },
        ),
        row(
            "HS-17",
            "I",
            "D-gwresp",
            "a $connect that outlives the integration timeout is a 504 [connect_timeout_status]",
        )
        .ours(FLAGS, |_| async move {
            for (value, expected) in [("504", 504), ("502", 502)] {
                let flags = ["--integration-timeout", "300ms", "--connect-timeout-status", value];
                let api = Api::ours(&flags).await;
                assert_eq!(status(&api, "?do=sleep&ms=3000").await, expected);
            }
        }),
        row(
            "HS-18",
            "D+O",
            "D-connect; localstack#3210",
            "an API without $connect accepts everybody and disconnects them",
        )
        .ours(SERVICE, |_| async move {
            let api = Api::edited(&[("websocket: $connect", "websocket: connect")], &[]).await;
            let mut client = api.connect().await;
            client.close(1000, "").await;
            api.claim_invoked(&client.id, &["echo", "$disconnect"]);
            api.end().await;
        }),
        row("HS-19", "D", "D-subproto", "the 101 has the one subprotocol that the function returned").anywhere(
            |api| async move {
                let header = json!({"Sec-WebSocket-Protocol": "myprotocol"});
                chooses_myprotocol(&api, json!({"statusCode": 200, "headers": header})).await;
            },
        ),
        row(
            "HS-20",
            "O",
            "serverless-offline#1176; aws-lambda-graphql#65",
            "the 101 has no subprotocol unless the function returned one",
        )
        .anywhere(|api| async move {
            let client = offer(&api, json!({"statusCode": 200})).await;
            assert_eq!((client.reply.status, client.reply.header("sec-websocket-protocol")), (101, None));
        }),
        row("HS-21", "I", "D-subproto; S", "the function may write the header's name in lower case").anywhere(
            |api| async move {
                let header = json!({"sec-websocket-protocol": "myprotocol"});
                chooses_myprotocol(&api, json!({"statusCode": 200, "headers": header})).await;
            },
        ),
        row("HS-22", "O", "chalice#1768", "no other header and no body of $connect reaches the client").anywhere(
            |api| async move {
                let headers = json!({"Set-Cookie": "a=b", "X-Foo": "bar"});
                let client = offer(&api, json!({"statusCode": 200, "headers": headers, "body": "secret"})).await;
                let reply = &client.reply;
                let seen = (reply.status, reply.header("set-cookie"), reply.header("x-foo"), reply.body.as_str());
                assert_eq!(seen, (101, None, None, ""));
                if api.is_ours() {
                    let mut names: Vec<_> = reply.headers.iter().map(|(name, _)| name.as_str()).collect();
                    names.sort_unstable();
                    assert_eq!(names, ["connection", "date", "sec-websocket-accept", "upgrade"]);
                }
            },
        ),
        row("HS-23", "I", "D-proxyout", "the subprotocol may be in multiValueHeaders").anywhere(|api| async move {
            let header = json!({"Sec-WebSocket-Protocol": ["myprotocol"]});
            chooses_myprotocol(&api, json!({"statusCode": 200, "multiValueHeaders": header})).await;
        }),
        row("HS-24", "O", "D-auth", "identity of a client without User-Agent has only sourceIp").anywhere(
            |api| async move {
                let event = api.connect().await.ask(&json!({"action": "echo"})).await;
                let identity = event["requestContext"]["identity"].as_object().unwrap();
                assert_eq!(identity.keys().collect::<Vec<_>>(), ["sourceIp"]);
            },
        ),
        row("HS-25", "O", "websockets#1065", "an offer of permessage-deflate is answered as configured [deflate]")
            .anywhere(|api| async move {
                let answer = talks_of_compression(&api).await;
                if api.is_ours() {
                    assert_eq!(answer, None);
                    let api = Api::ours(&["--deflate", "negotiate"]).await;
                    let recorded = "permessage-deflate;server_max_window_bits=12";
                    assert_eq!(talks_of_compression(&api).await.as_deref(), Some(recorded));
                }
            }),
        row("HS-26", "D+I", "D-limits", "a URL of more than 4096 characters is a 4xx and reaches no function")
            .anywhere(|api| async move {
                let token = api.token();
                let status = status(&api, &format!("?{token}={}", "x".repeat(4096))).await;
                assert!((400..500).contains(&status), "{status}");
                api.claim_invoked(&token, &[]);
            }),
        row(
            "HS-27",
            "D+O",
            "D-endpoint; aws-sdk-net#1860",
            "a disabled default endpoint is a 403, and its domain is not",
        )
        .ours(SERVICE, |_| async move {
            let disabled = "WebsocketsApi: {Properties: {DisableExecuteApiEndpoint: true}}";
            let resources = format!("resources:\n  extensions: {{{disabled}}}\n");
            let api = Api::edited(&[("resources:\n", &resources)], &[]).await;
            let refused = api.handshake("?refused=1", &[]).await.reply;
            assert_eq!((refused.status, refused.body.as_str()), (403, r#"{"message":"Forbidden"}"#));

            // The path `/` stands for its custom domain.
            let mut client = api.handshake_path("/", &[]).await;
            api.learn_id(&mut client).await;
            assert_eq!(api.event(&client.id, "$connect").await["requestContext"]["stage"], "dev");
            api.claim_invoked("refused", &[]);
            let path = format!("/@connections/{}", client.id);
            let refused = api.call_path("POST", &format!("/dev{path}"), Some("execute-api"), b"no").await;
            assert_eq!((refused.status, refused.body.as_str()), (403, r#"{"message":"Forbidden"}"#));
            assert_eq!(refused.header("x-amzn-errortype"), Some("ForbiddenException"));
            assert_eq!(api.call_path("POST", &path, Some("execute-api"), b"yes").await.status, 200);
            assert_eq!(client.hears().await, "yes");

            // Functions and people get the address that works.
            client.send(&json!({"action": "echo", "do": "post", "data": "from a function"})).await;
            assert_eq!((client.hears().await, client.hears().await), ("from a function".to_owned(), "200".to_owned()));
            let (_, port) = api.endpoint.authority.split_once(':').unwrap();
            assert_eq!(api.stack().log(&[&format!("wscat -c 'ws://localhost:{port}/'")]).len(), 1);
            api.end().await;
        }),
        row(
            "HS-28",
            "D+O",
            "D-limits; ServerlessNetworkingClients#3",
            "handshakes above the rate are refused with 429 and reach no function",
        )
        .ours(FLAGS, |_| async move {
            let api = Api::ours(&["--connection-rate", "2"]).await;
            let mut seen = Vec::new();
            for _ in 0..6 {
                seen.push(status(&api, "").await);
            }
            assert!(seen.contains(&101) && seen.contains(&429), "{seen:?}");
            assert!(seen.iter().all(|status| [101, 429].contains(status)), "{seen:?}");
            let connected = seen.iter().filter(|status| **status == 101).count();
            let events = api.end().await;
            assert_eq!(events.iter().filter(|event| route_key(event) == "$connect").count(), connected);
        }),
        row("HS-29", "I", "D-connect", "a refused client gets no $disconnect, and its connection is gone").ours(
            LOG,
            |api| async move {
                for query in
                    [connect_returns(&json!({"statusCode": 403})), "?do=error".to_owned(), "?do=exit".to_owned()]
                {
                    let token = api.token();
                    assert_ne!(status(&api, &format!("{query}&{token}=1")).await, 101);
                    let event = api.event_with(&token).await;
                    let id = event["requestContext"]["connectionId"].as_str().unwrap();
                    api.assert_gone("POST", id).await;
                    api.claim_invoked(id, &["$connect"]);
                }
            },
        ),
        row("HS-30", "?", "none", "a client that leaves during $connect does not stop it [abort_during_connect]").ours(
            FLAGS,
            |_| async move {
                for (value, disconnects) in [("silent", false), ("disconnect", true)] {
                    let api = Api::ours(&["--abort-during-connect", value]).await;
                    // The function posts, half a second after it has begun.
                    let path = format!("{}?do=post&ms=500&data=began", api.endpoint.stage_path);
                    let tcp = api.endpoint.request(&path, &[]).await;
                    let event = api.event_with("began").await;
                    drop(tcp);
                    let id = event["requestContext"]["connectionId"].as_str().unwrap();
                    api.stack().logged(1, &[r#""fixture":"post""#, id, r#""status":"410""#]).await;
                    api.assert_gone("GET", id).await;
                    if disconnects {
                        let event = api.event(id, "$disconnect").await;
                        assert_eq!(event["requestContext"]["disconnectStatusCode"], 1006);
                    } else {
                        api.claim_invoked(id, &["$connect"]);
                    }
                    api.end().await;
                }
            },
        ),
        row("HS-31", "D+O", "L-apigw; terraform-aws-apigateway-v2#8", "a $connect that Lambda throttles is a 500")
            .ours(FLAGS, |_| async move {
                let api = Api::ours(&["--account-concurrency", "0"]).await;
                assert_eq!(status(&api, "").await, 500);
                assert_eq!(api.end().await, Vec::<serde_json::Value>::new());
            }),
        row("HS-32", "D", "L-env", "two clients at once have two ids, and two processes if they overlap").ours(
            LOG,
            |api| async move {
                let began = Instant::now();
                let sleep = || api.connect_with("?do=sleep&ms=1000", &[]);
                let (one, two) = tokio::join!(sleep(), sleep());
                assert_ne!(one.id, two.id);
                assert!(began.elapsed() < Duration::from_millis(1900), "one after the other: {:?}", began.elapsed());
            },
        ),
    ]
}
