//! Replicas that do not answer yet.

use super::{
    tests::{after, view},
    *,
};

#[test]
fn one_that_recovers_turns_to_the_primary_of_now() {
    let recovers = |follows: &str, standby: bool| {
        after("b", |observed, _| {
            let b = view(observed, "b");
            (b.process, b.server) = (ProcessState::Running { pid: 9, ready: false }, None);
            b.data = DataState::Whole { system_id: 7, standby };
            b.follows = Some(NodeName::new(follows));
        })
        .actions
    };
    assert_eq!(recovers("c", true), [Action::Follow { from: NodeName::new("a") }]);
    assert_eq!(recovers("a", true), []);
    // a primary's data would not come up as a replica's
    assert_eq!(recovers("c", false), []);
}
