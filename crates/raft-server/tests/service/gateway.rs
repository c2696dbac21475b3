//! The JSON gateway, spoken to as curl speaks.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::support::{Members, PATIENCE, put};

/// An HTTP/1.1 answer: its status and what is left to read.
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<String>,
    pub(crate) reader: BufReader<TcpStream>,
}

pub(crate) fn send(address: &str, method: &str, path: &str, body: &str) -> Answer {
    send_with(address, method, path, "", body)
}

/// With more header lines, each with its end.
fn send_with(address: &str, method: &str, path: &str, lines: &str, body: &str) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: \
         application/x-www-form-urlencoded\r\n{lines}Content-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut reader = BufReader::new(stream);
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if line.trim().is_empty() {
            break;
        }
        headers.push(line.trim().to_ascii_lowercase());
    }
    let status = headers[0].split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, headers, reader }
}

/// Asks with a JSON body, answers status and JSON.
fn post(address: &str, path: &str, body: &Value) -> (u16, Value) {
    let mut answer = send(address, "POST", path, &body.to_string());
    let mut text = String::new();
    answer.reader.read_to_string(&mut text).unwrap();
    (answer.status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}")))
}

fn without_header((status, mut value): (u16, Value)) -> (u16, Value) {
    let header = value.as_object_mut().unwrap().remove("header").unwrap();
    assert!(header["cluster_id"].is_string() && header["raft_term"].is_string(), "{header}");
    (status, value)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_answers_as_etcds_does() {
    let members = Members::start(1);
    members.leader().await;
    let address = &members.addresses[0];
    let call = |path: &str, body: Value| post(address, path, &body);

    // Keys, in both spellings; zeros are left out.
    let put = call("/v3/kv/put", json!({"key": "Zm9v", "value": "YmFy"}));
    assert_eq!(without_header(put), (200, json!({})));
    let put = call("/v3/kv/put", json!({"key": "Zm9v", "value": "YmF6", "prevKv": true}));
    let prev = json!({"key": "Zm9v", "value": "YmFy", "create_revision": "2", "mod_revision": "2", "version": "1"});
    assert_eq!(without_header(put), (200, json!({"prev_kv": prev})));
    let found = call("/v3/kv/range", json!({"key": "Zm9v", "range_end": "AA==", "limit": "1"}));
    let kv = json!({"key": "Zm9v", "value": "YmF6", "create_revision": "2", "mod_revision": "3", "version": "2"});
    assert_eq!(without_header(found), (200, json!({"kvs": [kv], "count": "1"})));
    let beta = call("/v3beta/kv/range", json!({"key": "eA=="}));
    assert_eq!(without_header(beta), (200, json!({})));
    let txn = json!({
        "compare": [{"key": "Zm9v", "result": "EQUAL", "target": "MOD", "mod_revision": "3"}],
        "success": [{"request_delete_range": {"key": "Zm9v"}}],
    });
    let answer = json!({"succeeded": true, "responses": [{"response_delete_range": {"header": {"revision": "4"}, "deleted": "1"}}]});
    assert_eq!(without_header(call("/v3/kv/txn", txn)), (200, answer));

    // Leases.
    let granted = call("/v3/lease/grant", json!({"TTL": 60, "ID": "77"}));
    assert_eq!(without_header(granted), (200, json!({"ID": "77", "TTL": "60"})));
    let (status, mut alive) = call("/v3/lease/keepalive", json!({"ID": "77"}));
    alive["result"].as_object_mut().unwrap().remove("header").unwrap();
    assert_eq!((status, alive), (200, json!({"result": {"ID": "77", "TTL": "60"}})));
    let left = call("/v3/kv/lease/timetolive", json!({"ID": 77, "keys": true}));
    assert!(left.1["TTL"] == "60" || left.1["TTL"] == "59", "{left:?}");
    let leases = call("/v3/lease/leases", json!({}));
    assert_eq!(without_header(leases), (200, json!({"leases": [{"ID": "77"}]})));
    assert_eq!(without_header(call("/v3/lease/revoke", json!({"ID": 77}))), (200, json!({})));

    // What is refused, in both shapes.
    let words = "etcdserver: requested lease not found";
    assert_eq!(
        call("/v3/lease/revoke", json!({"ID": 77})),
        (404, json!({"error": words, "code": 5, "message": words, "details": []}))
    );
    let (status, error) = call("/v3/kv/put", json!({}));
    assert_eq!((status, &error["message"]), (400, &json!("etcdserver: key is not provided")));
    let (status, error) = call("/v3/kv/range", json!({"key": "Zm9v", "revision": "99"}));
    let future = "etcdserver: mvcc: required revision is a future revision";
    assert_eq!((status, &error["error"], &error["code"]), (400, &json!(future), &json!(11)));
    assert_eq!(call("/v3/kv/put", json!([1])).0, 400);
    assert_eq!(call("/v3alpha/kv/put", json!({})).0, 404);
    assert_eq!(send(address, "GET", "/v3/kv/range", "").status, 405);

    // Who belongs to the cluster, and pages of other origins.
    let (status, list) = call("/v3/cluster/member/list", json!({}));
    assert_eq!((status, &list["members"][0]["name"]), (200, &json!("n0")));
    let options = send(address, "OPTIONS", "/v3/kv/range", "");
    assert_eq!(options.status, 200);
    assert!(options.headers.iter().any(|line| line == "access-control-allow-origin: *"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_over_the_gateway_is_a_line_for_each_answer() {
    let members = Members::start(1);
    members.leader().await;
    let address = &members.addresses[0];
    let create = json!({"create_request": {"key": "aw==", "start_revision": "2"}}).to_string();
    let progress = json!({"progress_request": {}}).to_string();
    let mut answer = send(address, "POST", "/v3/watch", &format!("{create}\n{progress}"));
    assert_eq!(answer.status, 200);
    let mut next = || {
        // Chunks: a length, a line of JSON, an empty line.
        loop {
            let mut line = String::new();
            assert!(answer.reader.read_line(&mut line).unwrap() > 0, "the stream has ended");
            if line.starts_with('{') {
                break serde_json::from_str::<Value>(&line).unwrap();
            }
        }
    };
    assert_eq!(next()["result"]["created"], true);
    assert_eq!(next()["result"]["watch_id"], "-1");
    put(address, "k", "v").await.unwrap();
    let event = next();
    assert_eq!(
        event["result"]["events"],
        json!([{"kv": {"key": "aw==", "value": "dg==", "create_revision": "2", "mod_revision": "2", "version": "1"}}])
    );
    let broken = send(address, "POST", "/v3/watch", "{]");
    let line =
        broken.reader.lines().map(Result::unwrap).find(|line| line.starts_with('{')).unwrap();
    let error: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (&error["error"]["grpc_code"], &error["error"]["http_code"]),
        (&json!(3), &json!(400))
    );
    assert_eq!(error["error"]["http_status"], "Bad Request");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_come_in_with_an_authorization_header() {
    let members = Members::start(1);
    members.leader().await;
    let address = &members.addresses[0];
    let call = |path: &str, token: &str, body: Value| {
        let line =
            if token.is_empty() { String::new() } else { format!("Authorization: {token}\r\n") };
        let mut answer = send_with(address, "POST", path, &line, &body.to_string());
        let mut text = String::new();
        answer.reader.read_to_string(&mut text).unwrap();
        (answer.status, serde_json::from_str::<Value>(&text).unwrap())
    };
    let ok = |path: &str, token: &str, body: Value| {
        let (status, answer) = call(path, token, body);
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    };
    ok("/v3/auth/user/add", "", json!({"name": "root", "password": "pw"}));
    ok("/v3/auth/user/add", "", json!({"name": "bob", "password": "pw"}));
    ok("/v3/auth/role/add", "", json!({"name": "root"}));
    ok("/v3/auth/user/grant", "", json!({"user": "root", "role": "root"}));
    ok("/v3/auth/role/add", "", json!({"name": "r"}));
    // k to l
    let perm = json!({"permType": "READ", "key": "aw==", "range_end": "bA=="});
    ok("/v3/auth/role/grant", "", json!({"name": "r", "perm": perm.clone()}));
    ok("/v3/auth/user/grant", "", json!({"user": "bob", "role": "r"}));
    ok("/v3/auth/enable", "", json!({}));
    assert_eq!(ok("/v3/auth/status", "", json!({}))["enabled"], json!(true));

    let (status, refused) = call("/v3/kv/range", "", json!({"key": "aw=="}));
    let words = "etcdserver: user name is empty";
    assert_eq!((status, &refused["error"], &refused["code"]), (400, &json!(words), &json!(3)));
    let (status, refused) = call("/v3/kv/range", "x", json!({"key": "aw=="}));
    let words = "etcdserver: invalid auth token";
    assert_eq!((status, &refused["message"], &refused["code"]), (401, &json!(words), &json!(16)));
    let (status, refused) =
        call("/v3/auth/authenticate", "", json!({"name": "bob", "password": "no"}));
    let words = "etcdserver: authentication failed, invalid user ID or password";
    assert_eq!((status, &refused["message"]), (400, &json!(words)));
    let log_in = |name: &str| {
        let answer = ok("/v3/auth/authenticate", "", json!({"name": name, "password": "pw"}));
        answer["token"].as_str().unwrap().to_owned()
    };
    let (root, bob) = (log_in("root"), log_in("bob"));
    let (status, refused) = call("/v3/kv/put", &bob, json!({"key": "aw==", "value": "eA=="}));
    let words = "etcdserver: permission denied";
    assert_eq!((status, &refused["message"], &refused["code"]), (403, &json!(words), &json!(7)));
    ok("/v3/kv/put", &root, json!({"key": "aw==", "value": "eA=="}));
    assert_eq!(ok("/v3/kv/range", &bob, json!({"key": "aw=="}))["count"], json!("1"));
    assert_eq!(ok("/v3/auth/user/get", &bob, json!({"name": "bob"}))["roles"], json!(["r"]));
    // READ is the first of its kind, and left out.
    let shown = json!([{"key": "aw==", "range_end": "bA=="}]);
    assert_eq!(ok("/v3/auth/role/get", &root, json!({"role": "r"}))["perm"], shown);
    assert_eq!(ok("/v3/auth/user/list", &root, json!({}))["users"], json!(["bob", "root"]));
    assert_eq!(ok("/v3/auth/role/list", &root, json!({}))["roles"], json!(["r", "root"]));
    let (status, _) = call("/v3/auth/user/list", &bob, json!({}));
    assert_eq!(status, 403);
    ok("/v3/auth/role/revoke", &root, json!({"role": "r", "key": "aw==", "range_end": "bA=="}));
    assert_eq!(call("/v3/kv/range", &bob, json!({"key": "aw=="})).0, 403);
    ok("/v3/auth/user/changepw", &root, json!({"name": "bob", "password": "new"}));
    assert_eq!(call("/v3/kv/range", &bob, json!({"key": "aw=="})).0, 401);
    ok("/v3/auth/user/revoke", &root, json!({"name": "bob", "role": "r"}));
    ok("/v3/auth/role/delete", &root, json!({"role": "r"}));
    ok("/v3/auth/user/delete", &root, json!({"name": "bob"}));
    ok("/v3/auth/disable", &root, json!({}));
    ok("/v3/kv/put", "", json!({"key": "aw==", "value": "eA=="}));
}
