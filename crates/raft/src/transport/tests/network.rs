#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a story waits for one event and skips the others"
)]

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use raft_core::{
    ClusterId, Digest, EntryId, EntryKind, GroupId, Incarnation, Membership, MembershipStep,
    Message, NodeId,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::LocalSet;

use super::samples::{append_entries, messages, node};
use crate::io::{Network, Stream};
use crate::message::{Hello, PeerMessage};
use crate::transport::codec::Sender;
use crate::transport::handshake::{Greeting, HandshakeFrame, Initiator, RefusedReason, Secret};
use crate::transport::{
    Event, HANDSHAKES_PER_IP_MAX, INBOUND_BYTES_MAX, Local, PeerAddress, Refused, Settings,
    TcpNetwork, Transport, codec, connection,
};

/// Runs a story on a runtime like the raft thread's.
fn story(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be built");
    let limit = Duration::from_secs(30);
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(limit, future).await.expect("the story ends in time");
    });
}

struct Node {
    id: NodeId,
    transport: Transport,
    network: TcpNetwork,
    events: UnboundedReceiver<Event>,
}

fn settings(id: NodeId) -> Settings {
    Settings {
        node: id,
        group: GroupId::FIRST,
        address: "127.0.0.1:0".to_owned(),
        listen: Some("127.0.0.1:0".to_owned()),
        cluster_secret: None,
        security: None,
        meters: Arc::default(),
    }
}

fn local() -> Local {
    Local { cluster: Some(ClusterId(7)), epoch: 3, last_durable: EntryId::new(5, 2) }
}

async fn start(settings: Settings, local: Local) -> Node {
    let id = settings.node;
    let (transport, network, events) =
        Transport::start(settings, local).await.expect("a free port");
    Node { id, transport, network, events }
}

impl Node {
    fn address(&self) -> String {
        self.transport.local_address().expect("it listens").to_string()
    }

    fn dial(&mut self, peers: &[&Self]) {
        let peers =
            peers.iter().map(|peer| PeerAddress { node: Some(peer.id), address: peer.address() });
        self.transport.set_peers(peers.collect());
    }

    /// The first event that `pick` wants; the others are gone.
    async fn until<T>(&mut self, pick: impl Fn(Event) -> Option<T>) -> T {
        loop {
            let event = self.events.recv().await.expect("the transport runs");
            if let Some(picked) = pick(event) {
                return picked;
            }
        }
    }

    async fn connected(&mut self) -> Hello {
        self.until(|event| match event {
            Event::Connected { hello, stream: Stream::Control, .. } => Some(hello),
            _ => None,
        })
        .await
    }

    async fn disconnected(&mut self) -> (NodeId, bool) {
        self.until(|event| match event {
            Event::Disconnected { node, stream: Stream::Control, hint } => Some((node, hint)),
            _ => None,
        })
        .await
    }

    async fn refused(&mut self) -> Refused {
        self.until(|event| match event {
            Event::Refused { refused, .. } => Some(refused),
            _ => None,
        })
        .await
    }

    async fn message(&mut self) -> (NodeId, PeerMessage) {
        self.until(|event| match event {
            Event::Message { from, message, .. } => Some((from, message)),
            _ => None,
        })
        .await
    }

    fn say(&mut self, to: NodeId, text: &'static [u8]) {
        let message = PeerMessage::Formation(Bytes::from_static(text));
        self.network.send(to, Stream::Control, message);
    }
}

/// Two nodes of which the first dials the second.
async fn pair() -> (Node, Node) {
    let mut one = start(settings(node(1)), local()).await;
    let two = start(settings(node(2)), local()).await;
    one.dial(&[&two]);
    one.connected().await;
    (one, two)
}

/// Two spellings of one address: the second finds out who is there and leaves the connection of the first alone.
#[test]
fn two_addresses_of_one_node_make_one_connection() {
    story(async {
        let mut one = start(settings(node(1)), local()).await;
        let mut two = start(settings(node(2)), local()).await;
        one.dial(&[&two]);
        one.connected().await;
        let spelt_otherwise = two.address().replace("127.0.0.1", "localhost");
        let address = |address: String| PeerAddress { node: Some(node(2)), address };
        let addresses = vec![address(two.address()), address(spelt_otherwise)];
        one.transport.set_peers(addresses);
        // Longer than a few rounds of dialling; the first connection must live through them.
        let end = tokio::time::timeout(Duration::from_millis(500), one.disconnected()).await;
        assert!(end.is_err(), "the connection broke: {end:?}");
        one.say(two.id, b"still here");
        let formation = PeerMessage::Formation(Bytes::from_static(b"still here"));
        assert_eq!(two.message().await, (one.id, formation));
    });
}

/// What is too large for a frame is a gap like any other: what follows does not arrive without being told.
#[test]
fn a_message_too_large_interrupts_the_stream() {
    story(async {
        let (mut one, mut two) = pair().await;
        let large = PeerMessage::Formation(Bytes::from(vec![0; codec::FRAME_BYTES_MAX]));
        one.network.send(two.id, Stream::Control, large);
        one.say(two.id, b"lost too");
        assert_eq!(one.disconnected().await, (two.id, false));
        one.connected().await;
        one.say(two.id, b"after it");
        let formation = PeerMessage::Formation(Bytes::from_static(b"after it"));
        assert_eq!(two.message().await, (one.id, formation));
    });
}

#[test]
fn three_nodes_exchange_every_message() {
    story(async {
        let mut nodes = Vec::new();
        for member in 1..=3 {
            nodes.push(start(settings(node(member)), local()).await);
        }
        let addresses: Vec<_> = nodes
            .iter()
            .map(|node| PeerAddress { node: Some(node.id), address: node.address() })
            .collect();
        for node in &mut nodes {
            // Its own address among them does no harm: it is left out by the owner, or refused.
            let id = node.id;
            let others = addresses.iter().filter(|peer| peer.node != Some(id));
            node.transport.set_peers(others.cloned().collect());
        }
        for node in &mut nodes {
            let first = node.connected().await.node;
            assert_ne!(node.connected().await.node, first);
        }
        let all: Vec<_> = messages()
            .into_iter()
            .map(|(_, message)| message)
            .filter(|message| *message != PeerMessage::Goodbye)
            .collect();
        let ids: Vec<_> = nodes.iter().map(|node| node.id).collect();
        for message in &all {
            for to in &ids[1..] {
                nodes[0].network.send(*to, Stream::Control, message.clone());
            }
        }
        for receiver in &mut nodes[1..] {
            for message in &all {
                assert_eq!(receiver.message().await, (node(1), message.clone()));
            }
        }
        for node in nodes {
            node.transport.shutdown().await;
        }
    });
}

#[test]
fn the_handshake_tells_what_the_node_says_of_itself() {
    story(async {
        let mut one = start(settings(node(1)), local()).await;
        let mut two = start(settings(node(2)), local()).await;
        two.network.set_epoch_seen(node(1), 17);
        two.network.set_epoch(4);
        one.dial(&[&two]);
        let hello = one.connected().await;
        assert_eq!((hello.node, hello.epoch, hello.epoch_seen), (node(2), 4, 17));
        assert_eq!(hello.last_durable, EntryId::new(5, 2));
        // The epoch of the moment travels in every frame.
        one.network.set_epoch(9);
        one.say(node(2), b"x");
        let epoch = two
            .until(|event| match event {
                Event::Message { epoch, .. } => Some(epoch),
                _ => None,
            })
            .await;
        assert_eq!(epoch, 9);
    });
}

#[test]
fn a_killed_process_gives_a_hint() {
    story(async {
        let (mut one, two) = pair().await;
        drop(two);
        assert_eq!(one.disconnected().await, (node(2), true));
        assert!(!one.network.is_connected(node(2), Stream::Control));
    });
}

#[test]
fn a_goodbye_gives_no_hint_and_everything_queued_arrives() {
    story(async {
        let (mut one, mut two) = pair().await;
        two.dial(&[&one]);
        two.connected().await;
        for _ in 0..1000 {
            two.say(node(1), b"last words");
        }
        two.transport.shutdown().await;
        let mut words = 0;
        let hint = loop {
            match one.events.recv().await.expect("the transport runs") {
                Event::Message { message: PeerMessage::Formation(_), .. } => words += 1,
                Event::Disconnected { stream: Stream::Control, hint, .. } => break hint,
                _ => {}
            }
        };
        assert!(!hint);
        while words < 1000 {
            one.message().await;
            words += 1;
        }
    });
}

#[test]
fn a_broken_connection_to_a_living_process_gives_no_hint_and_is_made_again() {
    story(async {
        let (mut one, mut two) = pair().await;
        // A frame that the receiver closes the connection for.
        one.network.set_cluster(ClusterId(8));
        one.say(node(2), b"from another cluster");
        one.network.set_cluster(ClusterId(7));
        assert_eq!(one.disconnected().await, (node(2), false));
        one.connected().await;
        one.say(node(2), b"again");
        let again = PeerMessage::Formation(Bytes::from_static(b"again"));
        assert_eq!(two.message().await, (node(1), again));
        assert_eq!(two.network.stats().bad_frames, 1);
    });
}

#[test]
fn a_restarted_peer_is_found_again() {
    story(async {
        let (mut one, two) = pair().await;
        let address = two.address();
        drop(two);
        assert_eq!(one.disconnected().await, (node(2), true));
        let listen = Some(address);
        let mut two = start(Settings { listen, ..settings(node(2)) }, local()).await;
        one.connected().await;
        one.say(node(2), b"welcome back");
        assert_eq!(two.message().await.0, node(1));
    });
}

#[test]
fn a_malformed_frame_closes_only_its_connection() {
    story(async {
        let (mut one, mut two) = pair().await;
        // Somebody else passes the handshake and then sends rubbish.
        let mut tcp = TcpStream::connect(two.address()).await.expect("it listens");
        greet(&mut tcp, node(3)).await;
        tcp.write_all(&[64, 0, 0, 0]).await.expect("connected");
        tcp.write_all(&[0xFF; 60]).await.expect("connected");
        let mut rest = Vec::new();
        tcp.read_to_end(&mut rest).await.ok();
        assert_eq!(two.network.stats().bad_frames, 1);
        one.say(node(2), b"undisturbed");
        assert_eq!(two.message().await.0, node(1));
        assert!(one.network.is_connected(node(2), Stream::Control));
    });
}

/// Passes the handshake by hand.
async fn greet(tcp: &mut TcpStream, from: NodeId) {
    let sender = Sender { group: GroupId::FIRST, cluster: Some(ClusterId(7)), epoch: 1 };
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        cluster: sender.cluster,
        node: from,
        address: String::new(),
        epoch: 1,
        last_durable: EntryId::ZERO,
        epoch_seen: 0,
    };
    let ours = Greeting {
        hello,
        stream: Stream::Control,
        expects: None,
        nonce: [0; 32],
        has_secret: false,
    };
    let facts = crate::transport::handshake::Facts {
        node: from,
        cluster: sender.cluster,
        members: Default::default(),
        removed: Default::default(),
        epochs_seen: Default::default(),
    };
    let (mut input, mut out) = (BytesMut::new(), BytesMut::new());
    let mut initiator = Initiator::new(None, sender, ours, &mut out).expect("a short hello");
    loop {
        tcp.write_all(&out).await.expect("connected");
        out.clear();
        tcp.read_buf(&mut input).await.expect("connected");
        if initiator.receive(&facts, &mut input, &mut out).expect("no refusal").is_some() {
            return;
        }
    }
}

#[test]
fn refusals_are_reported_with_their_reason() {
    story(async {
        let mut one = start(settings(node(1)), local()).await;

        let other_cluster = Local { cluster: Some(ClusterId(8)), ..local() };
        let two = start(settings(node(2)), other_cluster).await;
        one.dial(&[&two]);
        assert_eq!(one.refused().await.reason, RefusedReason::OtherCluster);

        let mut wiped = node(2);
        wiped.incarnation = Incarnation(99);
        let two = start(settings(wiped), local()).await;
        one.transport.set_peers(vec![PeerAddress { node: Some(node(2)), address: two.address() }]);
        let refused = one.refused().await;
        assert_eq!(refused.reason, RefusedReason::OtherNode);
        assert!(!refused.by_peer);

        // The one that was removed is told so.
        let two = start(settings(node(2)), local()).await;
        let members = Membership::from_voters([1, 2].map(|n| (node(n), Bytes::new())));
        let removed = members.change(&[MembershipStep::Remove(node(1))]).expect("it is a member");
        let removed = removed.leave_joint();
        two.network.set_membership(&removed, &removed);
        one.dial(&[&two]);
        let refused = one.refused().await;
        assert_eq!((refused.reason, refused.by_peer), (RefusedReason::Removed, true));

        let cluster_secret = Secret::new(b"a secret of the cluster");
        let two = start(Settings { cluster_secret, ..settings(node(2)) }, local()).await;
        one.dial(&[&two]);
        assert_eq!(one.refused().await.reason, RefusedReason::Secret);

        // Itself, by its own address.
        let address = one.address();
        one.transport.set_peers(vec![PeerAddress { node: None, address }]);
        assert_eq!(one.refused().await.reason, RefusedReason::Myself);
    });
}

/// A node learns that it was removed even when its connections stand, but not before it is really gone.
#[test]
fn a_removed_member_learns_it_from_its_next_message() {
    story(async {
        let (mut one, mut two) = pair().await;
        let members = Membership::from_voters([1, 2].map(|n| (node(n), Bytes::new())));
        let joint = members.change(&[MembershipStep::Remove(node(1))]).expect("it is a member");
        let gone = joint.leave_joint();
        // Appended, not committed: it may still be undone.
        two.network.set_membership(&gone, &joint);
        one.say(node(2), b"still a voter of the old half");
        assert_eq!(two.message().await.0, node(1));
        two.network.set_membership(&gone, &gone);
        one.say(node(2), b"gone");
        let refused = one.refused().await;
        assert_eq!((refused.reason, refused.by_peer), (RefusedReason::Removed, true));
    });
}

#[test]
fn with_the_same_secret_they_talk() {
    story(async {
        let secret = || Secret::new(b"a secret of the cluster");
        let with = |id| Settings { cluster_secret: secret(), ..settings(node(id)) };
        let mut one = start(with(1), local()).await;
        let mut two = start(with(2), local()).await;
        one.dial(&[&two]);
        one.connected().await;
        one.say(node(2), b"hello");
        assert_eq!(two.message().await.0, node(1));
    });
}

/// Before formation only formation's messages pass; the connection outlives the formation.
#[test]
fn formation_happens_on_a_standing_connection() {
    story(async {
        let unformed = || Local { cluster: None, ..local() };
        let mut one = start(settings(node(1)), unformed()).await;
        let mut two = start(settings(node(2)), unformed()).await;
        one.transport.set_peers(vec![PeerAddress { node: None, address: two.address() }]);
        assert_eq!(one.connected().await.cluster, None);
        let entries = [(1, EntryKind::Empty, Bytes::new())];
        let append = || append_entries(1, EntryId::ZERO, Digest(1), &entries, 0);
        one.network.set_cluster(ClusterId(7));
        one.network.send(node(2), Stream::Control, PeerMessage::Raft(append()));
        one.say(node(2), b"formed");
        // The entries were for a node that had no log yet.
        let formed = PeerMessage::Formation(Bytes::from_static(b"formed"));
        assert_eq!(two.message().await.1, formed);
        two.network.set_cluster(ClusterId(7));
        one.network.send(node(2), Stream::Control, PeerMessage::Raft(append()));
        let (_, message) = two.message().await;
        assert!(matches!(message, PeerMessage::Raft(Message::AppendEntries(_))));
        // Now the address has a node, and the connection is the right one: it stays.
        one.dial(&[&two]);
        assert!(one.network.is_connected(node(2), Stream::Control));
    });
}

/// The driver's direct flush and the connection's writer share one socket, which takes parts of frames when it is full.
#[test]
fn whoever_writes_the_frames_arrive_whole_and_in_order() {
    const MESSAGES: u64 = 400;
    story(async {
        let (mut one, mut two) = pair().await;
        let content = |number: u64| {
            // From a few bytes to more than the kernel takes at once.
            let bytes = if number.is_multiple_of(7) { 3 << 20 } else { 1 << (number % 17) };
            let mut content = BytesMut::from(&number.to_le_bytes()[..]);
            content.resize(8 + bytes, number.to_le_bytes()[0]);
            PeerMessage::Formation(content.freeze())
        };
        let mut arrived = 0;
        for number in 0..MESSAGES {
            one.network.send(node(2), Stream::Control, content(number));
            if !number.is_multiple_of(3) {
                one.network.flush();
            }
            // What is under way stays far below the queue's limit.
            while number >= arrived + 15 {
                assert_eq!(two.message().await.1, content(arrived), "message {arrived}");
                arrived += 1;
            }
        }
        let farewell = async {
            one.network.flush();
            one.transport.shutdown().await;
        };
        let rest = async {
            while arrived < MESSAGES {
                assert_eq!(two.message().await.1, content(arrived), "message {arrived}");
                arrived += 1;
            }
        };
        tokio::join!(farewell, rest);
        assert_eq!(one.network.stats().dropped_overflow, 0);
        assert_eq!(two.network.stats().bad_frames, 0);
    });
}

/// A driver that does not process what arrives stops its peer, and costs neither more than the limits.
#[test]
fn a_slow_reader_costs_bounded_memory() {
    const MESSAGE: usize = 1 << 20;
    story(async {
        let (mut one, mut two) = pair().await;
        let big = Bytes::from(vec![1; MESSAGE]);
        // The one side sends until its queue is full; the other reads only what it is allowed to.
        let mut unprocessed = Vec::new();
        while one.network.stats().dropped_overflow == 0 {
            let message = PeerMessage::Formation(big.clone());
            one.network.send(node(2), Stream::Control, message);
            tokio::task::yield_now().await;
            while let Ok(event) = two.events.try_recv() {
                if matches!(event, Event::Message { .. }) {
                    unprocessed.push(event);
                }
            }
        }
        assert_eq!(one.disconnected().await, (node(2), false));
        assert!(unprocessed.len() <= INBOUND_BYTES_MAX / MESSAGE + 1, "{}", unprocessed.len());
        // Once they are processed, everything up to the overflow arrives, and then the way is free again.
        let mut arrived = unprocessed.len();
        drop(unprocessed);
        let sent = usize::try_from(one.network.stats().sent).expect("a small number");
        while arrived < sent {
            two.message().await;
            arrived += 1;
        }
        one.connected().await;
        one.say(node(2), b"again");
        let again = PeerMessage::Formation(Bytes::from_static(b"again"));
        assert_eq!(two.message().await.1, again);
    });
}

#[test]
fn connections_handed_in_are_served_like_accepted_ones() {
    story(async {
        let mut one = start(settings(node(1)), local()).await;
        let mut two = start(Settings { listen: None, ..settings(node(2)) }, local()).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        one.transport.set_peers(vec![PeerAddress { node: None, address }]);
        let (tcp, _) = listener.accept().await.expect("one dials");
        let mut first = [0];
        tcp.peek(&mut first).await.expect("one speaks first");
        assert!(crate::transport::first_byte_is_peer(first[0]));
        let acceptor = two.transport.acceptor();
        let tcp = tcp.into_std().expect("a socket");
        std::thread::spawn(move || acceptor.accept(tcp)).join().expect("the thread ends");
        assert_eq!(one.connected().await.node, node(2));
        one.say(node(2), b"hello");
        assert_eq!(two.message().await.0, node(1));
    });
}

/// Who does not finish the handshake is closed, and cannot crowd out the others for long.
#[test]
fn silent_connections_are_limited_and_closed() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime can be built");
    LocalSet::new().block_on(&runtime, async {
        let two = start(settings(node(2)), local()).await;
        let mut silent = Vec::new();
        for _ in 0..HANDSHAKES_PER_IP_MAX {
            silent.push(TcpStream::connect(two.address()).await.expect("it listens"));
        }
        let mut over = TcpStream::connect(two.address()).await.expect("it listens");
        let mut answer = Vec::new();
        over.read_to_end(&mut answer).await.expect("a refusal and the end");
        let mut input = BytesMut::from(&answer[crate::transport::handshake::PREAMBLE_BYTES..]);
        let frame = codec::decode(&input.split().freeze(), None).expect("a whole frame");
        let codec::Content::Handshake(HandshakeFrame::Refused(refused)) = frame.content else {
            panic!("not a refusal");
        };
        assert_eq!(refused.reason, RefusedReason::TooManyConnections);
        assert_eq!(two.network.stats().over_limit, 1);
        // The paused clock jumps to the deadline as soon as nobody has anything to do.
        for mut tcp in silent {
            assert_eq!(tcp.read(&mut [0]).await.expect("the end"), 0);
        }
        let mut tcp = TcpStream::connect(two.address()).await.expect("it listens");
        greet(&mut tcp, node(1)).await;
    });
}

/// A socket connected to itself, as a dialler gets when its ephemeral port is the one that it dials.
async fn self_connected() -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
    let address = socket.local_addr().expect("bound");
    socket.connect(address).await.expect("TCP allows it")
}

#[test]
fn a_connection_to_itself_is_dropped() {
    story(async {
        let two = start(settings(node(2)), local()).await;
        for _ in 0..200 {
            let tcp = self_connected().await;
            assert!(connection::is_to_itself(&tcp));
            two.transport.acceptor().accept(tcp.into_std().expect("a socket"));
        }
        let tcp = TcpStream::connect(two.address()).await.expect("it listens");
        assert!(!connection::is_to_itself(&tcp));
    });
}

/// An address of which an outgoing connection has taken possession is free again in a moment.
#[test]
fn binding_waits_for_a_busy_port() {
    story(async {
        let holder = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let listen = Some(holder.local_addr().expect("bound").to_string());
        let release = async {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            drop(holder);
        };
        let bound = Transport::start(Settings { listen, ..settings(node(1)) }, local());
        let (bound, ()) = tokio::join!(bound, release);
        assert!(bound.is_ok());
    });
}

#[test]
fn a_port_that_stays_busy_is_an_error_that_names_it() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime can be built");
    LocalSet::new().block_on(&runtime, async {
        let holder = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = holder.local_addr().expect("bound").to_string();
        let listen = Some(address.clone());
        let error = Transport::start(Settings { listen, ..settings(node(1)) }, local())
            .await
            .expect_err("the port is busy");
        assert!(error.to_string().contains(&address), "{error}");
    });
}

#[test]
fn a_peer_that_is_no_longer_wanted_is_told_goodbye() {
    story(async {
        let (mut one, two) = pair().await;
        one.transport.set_peers(Vec::new());
        assert_eq!(one.disconnected().await, (node(2), false));
        one.transport.shutdown().await;
        two.transport.shutdown().await;
    });
}
