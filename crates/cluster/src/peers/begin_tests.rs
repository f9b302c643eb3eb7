//! How a cluster begins whose etcd has nothing of it.

use std::sync::Arc;

use super::*;
use crate::{
    model::policy,
    spec::RestoreId,
    store::{Heard, Member},
};

fn holds(standby: bool, restored: Option<RestoreId>) -> NodeView {
    NodeView {
        part: Default::default(),
        data: DataState::Whole { system_id: 7, standby },
        was_primary: !standby,
        process: ProcessState::None,
        rogue: false,
        restored,
        may_write: false,
        dying: false,
        disk: DiskView::default(),
        server: None,
        slots: None,
        silent_since: None,
        not_streaming_since: None,
        within: None,
        heard_at: Duration::ZERO,
        absent_since: None,
        vote: None,
        follows: None,
        busy: None,
        failure: None,
    }
}

fn nothing_known() -> Intent {
    Intent {
        goal: Goal::Run,
        primary: NodeName::new("a"),
        term: 0,
        system_id: None,
        promoting: false,
        promise: Promise::none(),
        paused: false,
        wish: None,
        said: Default::default(),
        restored: None,
        policy: policy(),
    }
}

/// What the agent of `a` makes of this data on three hosts, when etcd has nothing.
fn begun(data: [NodeView; 3]) -> Result<Intent, ClusterError> {
    let names = ["a", "b", "c"].map(NodeName::new);
    let members = names.iter().zip(&data).map(|(name, view)| {
        let member = Arc::new(Member { view: view.clone(), now: Duration::ZERO, roles_ready: false });
        (name.clone(), Heard { member, at: Duration::ZERO })
    });
    let shared = Shared { connected: true, members: members.collect(), ..Shared::default() };
    let mut peers = Peers::new(Some(names[0].clone()));
    let intent = nothing_known();
    assert!(peers.hear(shared, names.iter(), &intent, Duration::ZERO).is_none());
    let own = Observed {
        nodes: [(names[0].clone(), data[0].clone())].into(),
        office: Office::Unknown,
        slots: None,
        roles_ready: false,
        primary_lsn: None,
        logical_slots: BTreeSet::new(),
        handed_over: None,
        arrived: false,
    };
    peers.begin(&own, 3, &names[0], &intent).expect("all have been heard")
}

#[test]
fn data_of_before_a_restore_makes_no_primary_once_etcd_has_forgotten_it() {
    let id = |at| Some(RestoreId::after(None, millrace_base::Micros(at), &NodeName::new("b")));
    let found = begun([holds(false, None), holds(true, None), holds(true, None)]).unwrap();
    assert_eq!((found.primary.as_str(), found.restored), ("a", None));
    // a was off when the cluster was brought back to b
    let found = begun([holds(false, None), holds(false, id(5)), holds(true, id(5))]).unwrap();
    assert_eq!((found.primary.as_str(), found.restored), ("b", id(5)));
    // and again, when c was off
    let found = begun([holds(true, id(9)), holds(false, id(9)), holds(false, id(5))]).unwrap();
    assert_eq!((found.primary.as_str(), found.restored), ("b", id(9)));
    // whoever had the data of after is lost: nothing is guessed
    let lost = NodeView { data: DataState::Absent, ..holds(true, None) };
    let refused = begun([holds(false, None), lost, holds(true, id(5))]).unwrap_err();
    assert!(matches!(refused, ClusterError::NoPrimary(_)), "{refused}");
}
