//! `wss://` against the TLS of the local stack, whose authority nobody but these tests trusts.

#![expect(clippy::unwrap_used, reason = "a helper that fails should fail its test, like `unwrap` in the test itself")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use switchboard_client::rustls::crypto::ring;
use switchboard_client::rustls::pki_types::CertificateDer;
use switchboard_client::rustls::pki_types::pem::PemObject;
use switchboard_client::rustls::{ClientConfig, RootCertStore};
use switchboard_client::{Event, Options, Start, connect};
use switchboard_tests::network::Network;
use switchboard_tests::stack::{PATIENCE, Stack, binaries, command};
use tempfile::TempDir;

/// A stack, a network in front of it, and the file with the certificate of its authority.
async fn stack() -> (Stack, Network, PathBuf, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(&[]);
    command.env("TMPDIR", folder.path());
    let stack = Stack::run(command).await;
    let network = Network::to(&stack.gateway).await;
    let mut own = folder.path().read_dir().unwrap().map(|entry| entry.unwrap().path().join("own.pem"));
    let certificate = own.find(|path| path.exists()).unwrap();
    (stack, network, certificate, folder)
}

fn url(network: &Network, query: &str) -> String {
    format!("wss://{}/dev{query}", network.address.replace("127.0.0.1", "localhost"))
}

#[tokio::test]
async fn a_program_gives_its_own_roots_and_a_connection_that_is_cut_goes_on() {
    let (_stack, network, certificate, _folder) = stack().await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let tls = tls.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots).with_no_client_auth();
    let options = Options { tls: Some(Arc::new(tls)), max_delay: Duration::from_millis(200), ..Options::default() };
    let (client, mut events) = connect(&url(&network, "?userId=1"), options).unwrap();
    let room = client.topic("room.7");
    let mut heard = room.subscribe(Start::Now);
    let work = async {
        heard.ready().await.unwrap();
        room.publish("before").await.unwrap();
        network.cut().await;
        while !matches!(events.next().await.unwrap(), Event::Recovered { .. }) {}
        room.publish("after").await.unwrap();
        [heard.next().await.unwrap().json::<String>().unwrap(), heard.next().await.unwrap().json().unwrap()]
    };
    assert_eq!(tokio::time::timeout(PATIENCE, work).await.unwrap(), ["before", "after"]);
}

#[tokio::test]
async fn a_server_with_a_certificate_of_somebody_else_is_tried_again_and_the_reason_is_told() {
    let (_stack, network, _certificate, _folder) = stack().await;
    let options = Options { max_delay: Duration::from_millis(20), refusals: 2, ..Options::default() };
    let (_client, mut events) = connect(&url(&network, ""), options).unwrap();
    let mut attempts = 0;
    while attempts < 5 {
        let event = tokio::time::timeout(PATIENCE, events.next()).await.unwrap().unwrap();
        let Event::Connecting { attempt, reason, .. } = event else { panic!("{event:?}") };
        assert!(attempt == 1 || reason.as_ref().is_some_and(|words| words.contains("certificate")), "{reason:?}");
        attempts = attempt;
    }
}

#[tokio::test]
async fn without_options_the_authorities_are_those_of_the_machine() {
    let (_stack, network, certificate, _folder) = stack().await;
    let mut load = tokio::process::Command::new(binaries().join("switchboard-load"));
    load.arg(url(&network, "?userId={n}")).args(["--connections", "2", "--fanout", "2", "--time", "1s"]);
    let output = load.env("SSL_CERT_FILE", certificate).output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
}
