//! The client of S3, against a server on loopback that knows the few requests a store makes.
//!
//! Where a store is and with which keys stands in the environment, so the client is this program once more, started with one.

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};

use support::{PAGE, checkpoint, draft, increment, page, read_all, taken};
use vmferry_core::{PageBitmap, PageRun};
use vmferry_store::{Scope, Store, StoreError, StoreOptions};

/// The objects, by bucket and key.
type Objects = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

struct Request {
    method: String,
    path: String,
    query: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers
        .get("content-length")
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    Some(Request {
        method,
        path: unescape(path),
        query: unescape(query),
        headers,
        body,
    })
}

fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, left)) = rest.split_first() {
        rest = left;
        if first == b'%' {
            let digits = std::str::from_utf8(&rest[..2]).unwrap();
            bytes.push(u8::from_str_radix(digits, 16).unwrap());
            rest = &rest[2..];
        } else {
            bytes.push(first);
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn answer(request: &Request, objects: &Objects) -> (u16, Vec<u8>) {
    assert!(
        request.headers.contains_key("authorization"),
        "requests are signed"
    );
    let mut objects = objects.lock().unwrap();
    match request.method.as_str() {
        "PUT" => {
            let only_new = request.headers.get("if-none-match").is_some_and(|tag| tag == "*");
            if only_new && objects.contains_key(&request.path) {
                return (412, b"<Error><Code>PreconditionFailed</Code></Error>".to_vec());
            }
            objects.insert(request.path.clone(), request.body.clone());
            (200, Vec::new())
        }
        "GET" if request.query.contains("list-type=2") => {
            let parameter = |name: &str| {
                let found = request
                    .query
                    .split('&')
                    .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
                found.unwrap_or_default().to_owned()
            };
            let bucket = format!("{}/", request.path.trim_end_matches('/'));
            let prefix = format!("{bucket}{}", parameter("prefix"));
            let mut xml = String::from("<ListBucketResult><IsTruncated>false</IsTruncated>");
            for (key, bytes) in objects.iter().filter(|(key, _)| key.starts_with(&prefix)) {
                xml += &format!(
                    "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>\"x\"</ETag><Size>{}</Size></Contents>",
                    &key[bucket.len()..],
                    bytes.len()
                );
            }
            (200, (xml + "</ListBucketResult>").into_bytes())
        }
        "GET" | "HEAD" => match objects.get(&request.path) {
            None => (404, b"<Error><Code>NoSuchKey</Code></Error>".to_vec()),
            Some(bytes) => (200, bytes.clone()),
        },
        "DELETE" => {
            objects.remove(&request.path);
            (204, Vec::new())
        }
        "POST" if request.query.starts_with("delete") => {
            let body = String::from_utf8(request.body.clone()).unwrap();
            for key in body.split("<Key>").skip(1) {
                let key = key.split("</Key>").next().unwrap();
                objects.remove(&format!("{}/{key}", request.path.trim_end_matches('/')));
            }
            (200, b"<DeleteResult></DeleteResult>".to_vec())
        }
        other => panic!("{other} {} {}", request.path, request.query),
    }
}

fn serve(mut stream: TcpStream, objects: &Objects) {
    let Some(request) = read_request(&stream) else {
        return;
    };
    let (mut status, mut body) = answer(&request, objects);
    let mut head = String::new();
    let range = request
        .headers
        .get("range")
        .and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    if let Some((first, last)) = range
        && status == 200
    {
        let (first, total): (usize, usize) = (first.parse().unwrap(), body.len());
        let end = last.parse::<usize>().unwrap().saturating_add(1).min(total);
        body = body[first..end].to_vec();
        status = 206;
        head += &format!("Content-Range: bytes {first}-{}/{total}\r\n", end - 1);
    }
    head += "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nETag: \"x\"\r\nConnection: close\r\n";
    let _ = write!(
        stream,
        "HTTP/1.1 {status} X\r\n{head}Content-Length: {}\r\n\r\n",
        body.len()
    );
    if request.method != "HEAD" {
        let _ = stream.write_all(&body);
    }
}

#[test]
fn checkpoints_in_a_bucket() {
    let objects = Objects::default();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let served = objects.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let objects = served.clone();
            std::thread::spawn(move || serve(stream.unwrap(), &objects));
        }
    });
    let client = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "as_the_client"])
        .env("AWS_ENDPOINT_URL", endpoint)
        .env("AWS_ACCESS_KEY_ID", "key")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .env("AWS_REGION", "eu-north-1")
        .output()
        .unwrap();
    let said =
        String::from_utf8_lossy(&client.stdout).into_owned() + &String::from_utf8_lossy(&client.stderr);
    assert!(client.status.success() && said.contains("1 passed"), "{said}");
    let objects = objects.lock().unwrap();
    assert!(
        objects.contains_key("/bucket/some/prefix/checkpoints/web/2.manifest"),
        "{:?}",
        objects.keys()
    );
}

#[test]
#[ignore = "started by another test, with a server"]
fn as_the_client() {
    let store = Store::open("s3://bucket/some/prefix", StoreOptions::default()).unwrap();
    let mut ram: Vec<u8> = (0..200).flat_map(page).collect();
    let first = checkpoint(&store, "web", &ram).unwrap();
    let mut written = PageBitmap::new(200);
    written.insert(7);
    ram[7 * PAGE..8 * PAGE].copy_from_slice(&page(777));
    let second = increment(&store, &first, &ram, &written).unwrap();
    assert_eq!(read_all(&store, &second).unwrap(), ram);
    assert!(store.verify(Scope::All, |_, _| ()).unwrap().damage.is_empty());
    // Put only where nothing is: a second writer, and a commit of a number that is taken.
    let writer = store.begin(draft("db", 10, None)).unwrap();
    let error = store.begin(draft("db", 10, None)).err().unwrap();
    assert!(matches!(error, StoreError::Busy { .. }), "{error}");
    writer.pages(PageRun::new(0, 10), &ram[..10 * PAGE]).unwrap();
    let state = writer.blob(b"state").unwrap();
    writer.commit(taken(10, state)).unwrap();
    store.delete(&first).unwrap();
    assert_eq!(store.list(None).unwrap().len(), 2);
    store.sweep().unwrap();
    assert_eq!(read_all(&store, &second).unwrap(), ram);
}
