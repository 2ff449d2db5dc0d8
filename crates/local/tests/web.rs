//! The web port of a running stack: the files of `--web`. The tests run the real `switchboard-local` and send raw
//! requests, because a client would tidy the paths up.

#![expect(clippy::unwrap_used, reason = "a failed unwrap in a helper fails its test, too")]

mod stack;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use switchboard_tests::stack::command;
use tempfile::TempDir;

use stack::{HELLO, Stack, send};

/// A folder `pages` with files of many kinds, and a secret beside it.
fn pages() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("pages");
    fs::create_dir_all(pages.join("a folder")).unwrap();
    for (name, text) in [
        ("index.html", "<!doctype html><title>home</title>"),
        ("style.css", "body {}"),
        ("app.js", "export {};"),
        ("icon.svg", "<svg/>"),
        ("photo.png", "png"),
        ("data.json", "{}"),
        ("type.woff2", "font"),
        ("a folder/ž.txt", "inside"),
        (".env", "SECRET=1"),
    ] {
        fs::write(pages.join(name), text).unwrap();
    }
    fs::write(folder.path().join("secret.txt"), "SECRET=2").unwrap();
    fs::create_dir(folder.path().join("elsewhere")).unwrap();
    fs::write(folder.path().join("elsewhere/shared.js"), "export const shared = 1;").unwrap();
    symlink("../elsewhere/shared.js", pages.join("shared.js")).unwrap();
    folder
}

/// Starts a stack with further arguments. Returns it and the address of its web port.
async fn start(folder: &Path, arguments: &[&str]) -> (Stack, String) {
    let stack = Stack::serve(folder, &[&["--web-port", "0"], arguments].concat(), HELLO).await;
    let lines = stack.lines.borrow().clone();
    let port = lines.iter().find_map(|line| line.strip_prefix("  http://localhost:")).unwrap();
    let port = port.split('/').next().unwrap();
    (stack, format!("127.0.0.1:{port}"))
}

async fn serve(folder: &Path) -> (Stack, String) {
    start(folder, &["--web", folder.join("pages").to_str().unwrap()]).await
}

async fn get(address: &str, path: &str) -> String {
    send(address, &format!("GET {path}"), &format!("Host: {address}\r\n"), "").await
}

#[tokio::test]
async fn a_folder_is_served_with_the_types_of_its_files_and_never_from_a_cache() {
    let folder = pages();
    let (_stack, address) = serve(folder.path()).await;
    for (path, content_type, text) in [
        ("/", "text/html", "<title>home</title>"),
        ("/index.html", "text/html", "<title>home</title>"),
        ("/?url=ws://localhost:1/dev", "text/html", "<title>home</title>"),
        ("/style.css", "text/css", "body {}"),
        ("/app.js", "text/javascript", "export {};"),
        ("/icon.svg", "image/svg+xml", "<svg/>"),
        ("/photo.png", "image/png", "png"),
        ("/data.json", "application/json", "{}"),
        ("/type.woff2", "font/woff2", "font"),
        ("/a%20folder/%C5%BE.txt", "text/plain", "inside"),
        // The owner of the folder made this link, and it leads out of the folder.
        ("/shared.js", "text/javascript", "export const shared = 1;"),
    ] {
        let answer = get(&address, path).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(text), "{answer}");
        assert!(answer.contains(&format!("\r\ncontent-type: {content_type}\r\n")), "{path}: {answer}");
        assert!(answer.contains("\r\ncache-control: no-store\r\n"), "{answer}");
        assert!(answer.contains("\r\nx-content-type-options: nosniff\r\n"), "{answer}");
        assert!(answer.contains("\r\ncontent-security-policy: frame-ancestors 'self'\r\n"), "{answer}");
        assert!(!answer.contains("access-control-"), "{answer}");
    }
    assert!(get(&address, "/missing.js").await.starts_with("HTTP/1.1 404 "));
    let answer = send(&address, "POST /index.html", &format!("Host: {address}\r\n"), "x").await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
}

#[tokio::test]
async fn no_path_leads_out_of_the_folder() {
    let folder = pages();
    let (_stack, address) = serve(folder.path()).await;
    let secret = folder.path().join("secret.txt");
    for path in [
        "/../secret.txt",
        "/a%20folder/../../secret.txt",
        "/%2e%2e/secret.txt",
        "/%2E%2E%2Fsecret.txt",
        "/..%2fsecret.txt",
        "/..%5csecret.txt",
        "/%252e%252e/secret.txt",
        "/./../secret.txt",
        "//../secret.txt",
        "/index.html/../../secret.txt",
        "/.%00./secret.txt",
        "/%00",
        "/.env",
        "/%2eenv",
        "/a%20folder/..%2f.env",
        secret.to_str().unwrap(),
        &format!("/{}", secret.display()),
        &format!("/%2f{}", secret.display().to_string().trim_start_matches('/').replace('/', "%2f")),
    ] {
        let answer = get(&address, path).await;
        let status = answer.split(' ').nth(1).unwrap();
        assert!(["400", "404"].contains(&status) && !answer.contains("SECRET"), "{path}: {answer}");
    }
}

#[tokio::test]
async fn pages_of_other_machines_and_other_names_of_this_one_are_refused() {
    let folder = pages();
    let (stack, address) = serve(folder.path()).await;
    for headers in ["Host: evil.example\r\n", "Host: localhost.evil.example:3000\r\n", ""] {
        let answer = send(&address, "GET /", headers, "").await;
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("use localhost, 127.0.0.1"), "{answer}");
    }
    let headers = "Host: localhost\r\nOrigin: https://evil.example\r\n";
    let answer = send(&address, "GET /app.js", headers, "").await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    stack.logged(&["web | refused a request. The request's Host `evil.example`"]).await;
    for host in ["localhost:3000", "127.0.0.1", "[::1]:3000"] {
        assert!(send(&address, "GET /", &format!("Host: {host}\r\n"), "").await.starts_with("HTTP/1.1 200 "), "{host}");
    }
}

/// Returns what a stack that does not start prints.
async fn fails(arguments: &[&str]) -> String {
    let output = command(arguments).output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test]
async fn a_taken_port_and_a_missing_folder_are_named() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let text = fails(&["--web-port", &port]).await;
    assert!(text.contains(&format!("port {port} cannot be used")) && text.contains("with --web-port"), "{text}");
    let text = fails(&["--web", "no/such/folder"]).await;
    assert!(text.contains("no/such/folder: there is no such folder for --web"), "{text}");
}
