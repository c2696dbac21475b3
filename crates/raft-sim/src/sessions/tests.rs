//! What the workload says about answers and states that are wrong, and that its clients do try again.

use super::counter::{Add, Counter};
use super::*;

/// One client and a log.
struct Small {
    load: ExactlyOnce<Counter>,
    rng: Rng,
    calls: u64,
    last: u64,
}

impl Small {
    /// With a session that the entry 1 opened.
    fn new() -> Self {
        let add = |rng: &mut Rng| Ask::Command(Add(1 + rng.below(9)));
        let load = ExactlyOnce::new(Counter::default, add);
        let mut small = Self { load, rng: Rng::new(7), calls: 0, last: 0 };
        let (call, ask) = small.ask();
        assert!(matches!(ask, Ask::Command(SessionCommand::Open { .. })), "{ask:?}");
        small.commit(&call, ask);
        small.load.responded(&call, 0, SessionResponse::Opened(1));
        small
    }

    fn ask(&mut self) -> (Call, Ask<Sessions<Counter>>) {
        let call = Call { number: self.calls, client: 0, asked: 0, floor: Index::ZERO };
        self.calls += 1;
        (call, self.load.ask(&call, &mut self.rng))
    }

    fn commit(&mut self, call: &Call, ask: Ask<Sessions<Counter>>) -> EntryId {
        let (Ask::Command(command) | Ask::InSession(command, _)) = ask else {
            panic!("{ask:?} is no command");
        };
        self.last += 1;
        let at = EntryId::new(self.last, 1);
        self.load.applied(call, at, command);
        at
    }

    /// The next command, and in which session.
    fn command(&mut self) -> (Call, Ask<Sessions<Counter>>, Session) {
        loop {
            let (call, ask) = self.ask();
            if let Ask::InSession(_, session) = &ask {
                let session = *session;
                return (call, ask, session);
            }
        }
    }
}

impl Small {
    /// A command that was committed and that its client has heard nothing of: it asks again, unless it gives up and does
    /// the next. The sum after the first try.
    fn tried_again(&mut self) -> (Call, Ask<Sessions<Counter>>, Session, u64) {
        loop {
            let (first, ask, session) = self.command();
            self.commit(&first, ask);
            let sum = self.load.model.machine().query(());
            let (second, ask, again) = self.command();
            if again == session {
                return (second, ask, session, sum);
            }
            self.commit(&second, ask);
        }
    }
}

#[test]
fn what_nobody_answers_is_asked_again_and_counted_once() {
    let mut small = Small::new();
    let (second, ask, session, sum) = small.tried_again();
    small.commit(&second, ask);
    assert_eq!(small.load.model.machine().query(()), sum);
    small.load.responded(&second, 0, SessionResponse::Applied(sum));
    let (_, _, next) = small.command();
    assert_eq!(next.sequence, session.sequence + 1);
}

#[test]
#[should_panic(expected = "I17")]
fn a_retry_that_is_applied_again_is_noticed_by_its_answer() {
    let mut small = Small::new();
    let (second, ask, _, sum) = small.tried_again();
    small.commit(&second, ask);
    small.load.responded(&second, 0, SessionResponse::Applied(2 * sum));
}

#[test]
#[should_panic(expected = "I17: the state of")]
fn a_command_that_is_applied_twice_is_noticed_by_the_state() {
    let mut small = Small::new();
    let (call, ask, session) = small.command();
    let Ask::InSession(command, _) = &ask else { panic!("{ask:?}") };
    let command = command.clone();
    let at = small.commit(&call, ask);
    let mut member = small.load.machine();
    let context = |index, session| raft_core::ApplyContext { id: EntryId::new(index, 1), session };
    member.apply(context(1, None), SessionCommand::Open { sessions_max: 9 });
    member.apply(context(at.index.0, Some(session)), command.clone());
    small.load.look(NodeId::new(1, 1), at.index, &member);
    member.apply(context(at.index.0, None), command);
    small.load.look(NodeId::new(1, 1), at.index, &member);
}
