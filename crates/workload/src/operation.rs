//! What a simulated customer does, ready to run; and which, by the seed.

use millrace_config::pack::{Script, sql};
use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::WorkloadError;

/// One statement, in PostgreSQL's numbering; it is a transaction by itself.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Operation {
    pub(crate) name: String,
    pub(crate) sql: String,
    /// Numbers in `[0, 1)` that it takes.
    pub(crate) draws: usize,
    weight: f64,
}

impl Operation {
    /// `:r1` to `:rN` become `$1` to `$N`.
    pub(crate) fn parse(script: &Script) -> Result<Self, WorkloadError> {
        let mut draws = 0;
        for placeholder in sql::placeholders(&script.sql) {
            let number = placeholder.name.strip_prefix('r').and_then(|n| n.parse::<usize>().ok());
            match number {
                Some(n @ 1..=99) => draws = draws.max(n),
                _ => {
                    return Err(WorkloadError::UnknownParameter { path: script.path.clone(), name: placeholder.name });
                }
            }
        }
        let names: Vec<String> = (1..=draws).map(|n| format!("r{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        Ok(Self { name: script.name.clone(), sql: sql::number(&script.sql, &names), draws, weight: script.weight })
    }
}

/// What happens at one tick: the same for a seed, whatever happened before and whoever does it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Choice {
    /// Position among the operations.
    pub(crate) operation: usize,
    pub(crate) draws: Vec<f64>,
}

/// Chooses by weight; `None` without operations.
pub(crate) fn choose(operations: &[Operation], seed: u64, tick: u64) -> Option<Choice> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(tick);
    let all: f64 = operations.iter().map(|o| o.weight).sum();
    let mut left = rng.random::<f64>() * all;
    let mut chosen = operations.len().checked_sub(1)?;
    for (i, operation) in operations.iter().enumerate() {
        if left < operation.weight {
            chosen = i;
            break;
        }
        left -= operation.weight;
    }
    let draws = operations.get(chosen)?.draws;
    Some(Choice { operation: chosen, draws: (0..draws).map(|_| rng.random()).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(name: &str, weight: f64, sql: &str) -> Script {
        Script { path: format!("{name}.sql").into(), name: name.to_owned(), weight, sql: sql.to_owned() }
    }

    #[test]
    fn draws_are_numbered() {
        let parsed = Operation::parse(&script("a", 1.0, "SELECT :r2, :r1, :r2 + 1")).unwrap();
        assert_eq!((parsed.sql.as_str(), parsed.draws), ("SELECT $2, $1, $2 + 1", 2));
        for sql in ["SELECT :x", "SELECT :r0", "SELECT :r"] {
            assert!(Operation::parse(&script("a", 1.0, sql)).is_err(), "{sql}");
        }
    }

    #[test]
    fn choices_follow_seed_and_weight() {
        let operations: Vec<Operation> = [script("often", 9.0, "SELECT :r1"), script("rare", 1.0, "SELECT :r3")]
            .iter()
            .map(|s| Operation::parse(s).unwrap())
            .collect();
        let run = |seed| (0..2000).map(|tick| choose(&operations, seed, tick).unwrap()).collect::<Vec<_>>();
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
        let rare = run(7).iter().filter(|c| c.operation == 1).count();
        assert!((120..280).contains(&rare), "{rare} of 2000");
        assert!(run(7).iter().all(|c| c.draws.iter().all(|d| (0.0..1.0).contains(d))));
        assert_eq!(choose(&[], 1, 1), None);
    }
}
