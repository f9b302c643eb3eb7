//! `millrace bench failover`: how long applications cannot write when the primary fails, ours beside Patroni's.
//!
//! The same writer before both entries, in turns in the same run. What counts is what an application sees: the longest
//! time without an acknowledged insert, and whether every acknowledged row is there afterwards. Everything is on one
//! host, so a dead or frozen host is its processes: PostgreSQL's and, where there is one for each node, the agent's.
//! Ours is a platform with one supervisor for all nodes, which lives on, or, with `--agents`, as on many hosts.

mod agents;
mod patroni;
mod platform;
mod processes;
mod round;
mod writer;

use std::time::Duration;

use anyhow::bail;

use self::{
    agents::Agents,
    patroni::{Patroni, Programs},
    platform::Platform,
    round::{BACK_MAX, CONNECTIONS, Cluster, Round},
};
use super::{
    Measured,
    figure::{Figure, median},
    lab::Lab,
};
use crate::cli::{FailoverBench, Fault, PeerSettings};

/// Written to by the application; nothing else knows it.
const TABLE: &str = "CREATE TABLE public.bench_writes (id bigint PRIMARY KEY, at timestamptz NOT NULL)";

impl Fault {
    fn what(self) -> &'static str {
        match self {
            Self::Killed => "primary killed",
            Self::ServerKilled => "primary killed, its agent lives",
            Self::Postmaster => "postmaster alone killed",
            Self::Hung => "primary frozen",
            Self::ServerHung => "primary frozen, its agent lives",
            Self::Switchover => "switchover",
        }
    }

    /// What ours promises: median and worst, in seconds. `host`: the agent dies with the server.
    fn limits(self, host: bool) -> (f64, Option<f64>) {
        match self {
            Self::Killed if host => (6.0, None),
            Self::Killed | Self::ServerKilled => (2.0, Some(3.0)),
            Self::Postmaster => (1.0, None),
            Self::Hung | Self::ServerHung => (6.0, None),
            Self::Switchover => (0.4, None),
        }
    }
}

/// All rounds of a fault on one side.
#[derive(Debug, Default)]
struct Rounds(Vec<Round>);

impl Rounds {
    fn gaps_s(&self) -> Vec<f64> {
        self.0.iter().map(|round| round.gap.as_secs_f64()).collect()
    }

    fn worst_s(&self) -> f64 {
        self.gaps_s().into_iter().fold(f64::NAN, f64::max)
    }

    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    fn median_of(&self, count: impl Fn(&Round) -> usize) -> f64 {
        median(self.0.iter().map(|round| count(round) as f64).collect())
    }

    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    fn sum_of(&self, count: impl Fn(&Round) -> usize) -> f64 {
        self.0.iter().map(count).sum::<usize>() as f64
    }
}

/// A fault's rounds: ours, and those of each of the peer's settings.
#[derive(Debug)]
struct Faced {
    fault: Fault,
    agents: bool,
    ours: Rounds,
    peers: Vec<(PeerSettings, Rounds)>,
}

/// Our side.
#[derive(Debug)]
enum Ours {
    Platform(Platform),
    Agents(Agents),
}

pub(crate) async fn measure(lab: &mut Lab, options: &FailoverBench) -> anyhow::Result<Measured> {
    let parts: Vec<Option<PeerSettings>> = match options.peer_rounds {
        0 => vec![None],
        _ => options.peer_settings.iter().copied().map(Some).collect(),
    };
    if options.rounds == 0 && options.peer_rounds == 0 {
        bail!("no rounds on either side\n  hint: --rounds or --peer-rounds must be above 0");
    }
    let programs = match options.peer_rounds {
        0 => None,
        _ => Some(Programs::find(lab, options.patroni.as_deref()).await?),
    };
    let versions = programs.as_ref().map(|programs| programs.versions.join(", ")).unwrap_or_default();
    lab.versions.extend(programs.iter().flat_map(|programs| programs.versions.clone()));
    let agents = options.agents;
    let empty = |fault: &Fault| Faced { fault: *fault, agents, ours: Rounds::default(), peers: Vec::new() };
    let mut faced: Vec<Faced> = options.faults.iter().map(empty).collect();
    let mut differences = Vec::new();
    let mut ours = match (options.rounds, agents) {
        (0, _) => None,
        (_, false) => Some(Ours::Platform(Platform::start(lab).await?)),
        (_, true) => Some(Ours::Agents(Agents::start(lab).await?)),
    };
    for (settings, share) in parts.iter().zip(shares(options.rounds, parts.len())) {
        let mut peer = match (settings, &programs) {
            (Some(settings), Some(programs)) => Some(Patroni::start(lab, programs, *settings).await?),
            _ => None,
        };
        for one in &mut faced {
            one.peers.extend(settings.map(|settings| (settings, Rounds::default())));
            for turn in turns(share, options.peer_rounds) {
                match (turn, &mut ours, &mut peer) {
                    (Turn::Ours, Some(Ours::Platform(ours)), _) => one.face(lab, ours, &mut differences).await?,
                    (Turn::Ours, Some(Ours::Agents(ours)), _) => one.face(lab, ours, &mut differences).await?,
                    (Turn::Peer, _, Some(peer)) => one.face_peer(lab, peer).await?,
                    // a side without rounds has no turns
                    _ => {}
                }
            }
        }
    }
    let mut figures = Vec::new();
    if let Some(ours) = ours {
        match ours {
            Ours::Platform(ours) => ours.stop().await?,
            Ours::Agents(ours) => ours.stop().await?,
        }
        figures.extend(faced.iter().flat_map(|one| one.figures(&versions)));
        figures.extend(faced.iter().flat_map(Faced::limits));
    }
    Ok(Measured { figures, differences })
}

impl Faced {
    async fn face(&mut self, lab: &Lab, ours: &mut impl Cluster, differences: &mut Vec<String>) -> anyhow::Result<()> {
        let round = round::run(ours, self.fault).await?;
        let number = self.ours.0.len() + 1;
        let what = format!("{}, round {number}, ours", self.fault.what());
        lab.note(said(&what, &round));
        differences.extend(round.problems.iter().map(|problem| format!("{what}: {problem}")));
        if round.lost + round.lost_direct > 0 {
            let lost = round.lost + round.lost_direct;
            differences.push(format!("{what}: {lost} acknowledged rows are not there any more"));
        }
        self.ours.0.push(round);
        Ok(())
    }

    /// What the peer does wrong is said, and counted where it is a figure; it does not fail the command.
    async fn face_peer(&mut self, lab: &Lab, peer: &mut Patroni) -> anyhow::Result<()> {
        let round = round::run(peer, self.fault).await?;
        let Some((_, rounds)) = self.peers.last_mut() else { bail!("rounds of a peer without settings") };
        let what = format!("{}, round {}, {}", self.fault.what(), rounds.0.len() + 1, peer.name());
        lab.note(said(&what, &round));
        for problem in &round.problems {
            lab.note(format!("{what}: {problem}"));
        }
        rounds.0.push(round);
        Ok(())
    }

    /// Beside the peer.
    fn figures(&self, versions: &str) -> Vec<Figure> {
        let what = self.fault.what();
        let mut figures = Vec::new();
        for (settings, theirs) in &self.peers {
            let rounds = (self.ours.0.len(), theirs.0.len());
            let figure = |what: String, unit, ours, peer| Figure {
                what,
                unit,
                ours,
                peer: Some(peer),
                peer_name: settings.name().to_owned(),
                higher_is_better: false,
                settings: explained(rounds, self.agents, Some((*settings, versions))),
            };
            let (ours, theirs) = (&self.ours, theirs);
            figures.push(figure(
                format!("{what}: no writes, median"),
                "s",
                median(ours.gaps_s()),
                median(theirs.gaps_s()),
            ));
            figures.push(figure(format!("{what}: no writes, worst"), "s", ours.worst_s(), theirs.worst_s()));
            let mut count = |what: String, unit, of: &dyn Fn(&Round) -> usize, all: bool| {
                let value = |rounds: &Rounds| if all { rounds.sum_of(of) } else { rounds.median_of(of) };
                figures.push(figure(what, unit, value(ours), value(theirs)));
            };
            count(format!("{what}: failed inserts, median"), "inserts", &|round| round.failed, false);
            count(format!("{what}: acknowledged and lost, all rounds"), "rows", &|round| round.lost, true);
            if matches!(self.fault, Fault::Hung | Fault::ServerHung) {
                let what = format!("{what}: acknowledged by the thawed primary itself and lost, all rounds");
                count(what, "rows", &|round| round.lost_direct, true);
            }
        }
        figures
    }

    /// Beside what is promised.
    fn limits(&self) -> Vec<Figure> {
        let limit = |which: &str, ours: f64, limit: f64| Figure {
            what: format!("{}: no writes, {which} of {}", self.fault.what(), self.ours.0.len()),
            unit: "s",
            ours,
            peer: None,
            peer_name: format!("limit: {limit} s"),
            higher_is_better: false,
            settings: explained((self.ours.0.len(), 0), self.agents, None),
        };
        let (median_max, worst_max) = self.fault.limits(self.agents);
        let mut figures = vec![limit("median", median(self.ours.gaps_s()), median_max)];
        figures.extend(worst_max.map(|worst_max| limit("worst", self.ours.worst_s(), worst_max)));
        if self.fault == Fault::Switchover {
            figures.push(Figure {
                unit: "inserts",
                what: "switchover: failed inserts, all rounds".to_owned(),
                peer_name: "limit: 0".to_owned(),
                ..limit("", self.ours.sum_of(|round| round.failed), 0.0)
            });
        }
        figures
    }
}

fn explained((ours, theirs): (usize, usize), agents: bool, peer: Option<(PeerSettings, &str)>) -> String {
    let pace = writer::PACE.as_millis();
    let mut text = format!(
        "{CONNECTIONS} connections, an insert each {pace} ms after the last answer, reconnecting after each error; three nodes on \
         this host; rounds: {ours} ours"
    );
    if let Some((settings, versions)) = peer {
        text.push_str(&format!(
            ", {theirs} Patroni; killed and frozen take {} unless it is said to live{}; one etcd member each; TLS for ours \
             alone; {versions}; {}",
            if agents { "the agent along" } else { "Patroni's agent along" },
            if agents {
                ", and applications come by the proxy of a host that lives"
            } else {
                ", ours has one supervisor for all nodes, which lives"
            },
            settings.text()
        ));
    }
    text
}

fn said(what: &str, round: &Round) -> String {
    let ms = |gap: Duration| format!("{:.3} s", gap.as_secs_f64());
    let mut text = format!(
        "{what}: {}{} without writes, {} inserts failed, {} connections refused, {} of {} acknowledged rows lost",
        if round.gap >= BACK_MAX { "at least " } else { "" },
        ms(round.gap),
        round.failed,
        round.refused,
        round.lost,
        round.acknowledged
    );
    if round.lost_direct > 0 {
        text.push_str(&format!(", {} acknowledged by the thawed primary itself and lost", round.lost_direct));
    }
    if let Some(error) = &round.error {
        text.push_str(&format!(" (first error: {error})"));
    }
    text
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Ours,
    Peer,
}

/// Both sides' rounds spread evenly over the same time.
fn turns(ours: usize, peers: usize) -> Vec<Turn> {
    let mut all: Vec<(usize, Turn)> = Vec::new();
    // the n-th of them stands at (2n + 1) / 2·count; a common denominator keeps it whole
    all.extend((0..ours).map(|n| ((2 * n + 1) * peers.max(1), Turn::Ours)));
    all.extend((0..peers).map(|n| ((2 * n + 1) * ours.max(1), Turn::Peer)));
    all.sort_by_key(|(place, _)| *place);
    all.into_iter().map(|(_, turn)| turn).collect()
}

/// `rounds` in `parts` nearly equal parts.
fn shares(rounds: usize, parts: usize) -> Vec<usize> {
    (0..parts).map(|n| rounds / parts + usize::from(n < rounds % parts)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_interleaved() {
        use Turn::{Ours, Peer};
        assert_eq!(turns(2, 2), [Ours, Peer, Ours, Peer]);
        assert_eq!(turns(5, 2), [Ours, Peer, Ours, Ours, Ours, Peer, Ours]);
        assert_eq!(turns(1, 3), [Peer, Ours, Peer, Peer]);
        assert_eq!(turns(0, 1), [Peer]);
    }

    #[test]
    fn rounds_are_shared_between_settings() {
        assert_eq!(shares(5, 2), [3, 2]);
        assert_eq!(shares(1, 3), [1, 0, 0]);
    }
}
