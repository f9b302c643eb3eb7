//! Which models are in force: as they are declared; or as they were built, where the declaration cannot be.
//!
//! Invariant: a model that looks a dimension up is only ever in force together with the version of the
//! dimension that it was resolved with. Pure.

use std::collections::BTreeMap;

use millrace_base::Micros;
use millrace_model::{Model, Models};

/// Why a declared model is not built as it is declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) reason: String,
    pub(crate) since: Micros,
    /// What was built before cannot be kept up to date either, or there is nothing.
    pub(crate) stale: bool,
}

/// A declared model that is not built as it is declared, for those who watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldModel {
    pub name: String,
    pub reason: String,
    pub since: Micros,
    pub kept: Kept,
}

/// What there is of a held model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is kept up to date as it was built before.
    AsBuilt,
    /// Its rows stay as they were when it was held.
    Stale,
    /// It does not exist.
    Nothing,
}

/// What the writer works with, and the dependents that are held because of others.
#[derive(Debug, Default)]
pub(crate) struct InForce {
    pub(crate) models: Models,
    pub(crate) held: BTreeMap<String, Held>,
}

/// Puts together what is in force of `declared`, given what was `built` and what is `held`.
pub(crate) fn in_force(declared: &Models, built: &BTreeMap<String, Model>, held: &BTreeMap<String, Held>) -> InForce {
    let mut held = held.clone();
    loop {
        let before = held.clone();
        hold_facts(declared, &mut held);
        hold_dimensions(declared, built, &mut held);
        if held == before {
            break;
        }
    }
    let mut models: Vec<Model> = Vec::new();
    for model in declared.iter() {
        match held.get_mut(model.name()) {
            None => models.push(model.clone()),
            Some(one) => match built.get(model.name()) {
                Some(before) if !one.stale => models.push(before.clone()),
                _ => one.stale = true,
            },
        }
    }
    // a dimension that is no longer declared, but that what was built before looks up
    let missing: Vec<Model> = models
        .iter()
        .flat_map(lookups)
        .filter(|dimension| declared.get(dimension).is_none())
        .filter_map(|dimension| built.get(dimension).cloned())
        .collect();
    for dimension in missing {
        if models.iter().all(|m| m.name() != dimension.name()) {
            models.push(dimension);
        }
    }
    // what was built looks up a dimension that is not in force: it cannot be kept up to date
    let names: Vec<String> = models.iter().map(|m| m.name().to_owned()).collect();
    models.retain(|model| {
        let whole = lookups(model).all(|dimension| names.iter().any(|n| n == dimension));
        if !whole && let Some(one) = held.get_mut(model.name()) {
            one.stale = true;
        }
        whole || !held.contains_key(model.name())
    });
    // versions of different times: dimensions first, then facts, then views in their own order
    models.sort_by_key(|model| match model {
        Model::Dimension(_) | Model::Seed(_) | Model::Date(_) => 0,
        Model::Fact(_) => 1,
        Model::View(_) => 2,
    });
    InForce { models: models.into_iter().collect(), held }
}

/// A fact is resolved with its dimensions: it waits for them.
fn hold_facts(declared: &Models, held: &mut BTreeMap<String, Held>) {
    for model in declared.iter() {
        for dimension in lookups(model) {
            let Some((since, stale)) = held.get(dimension).map(|because| (because.since, because.stale)) else {
                continue;
            };
            let reason = format!("it looks up {dimension}, which is held");
            held.entry(model.name().to_owned()).or_insert(Held { reason, since, stale }).stale |= stale;
        }
    }
}

/// A fact that stays as it was built needs its dimensions as they were built.
fn hold_dimensions(declared: &Models, built: &BTreeMap<String, Model>, held: &mut BTreeMap<String, Held>) {
    let staying: Vec<(&Model, Micros)> =
        held.iter().filter(|(_, h)| !h.stale).filter_map(|(name, h)| Some((built.get(name)?, h.since))).collect();
    for (model, since) in staying {
        for dimension in lookups(model) {
            let (Some(new), Some(old)) = (declared.get(dimension), built.get(dimension)) else { continue };
            if new.declaration() != old.declaration() {
                let reason = format!("{}, which looks it up, stays as it was built", model.name());
                held.entry(dimension.to_owned()).or_insert(Held { reason, since, stale: false });
            }
        }
    }
}

fn lookups(model: &Model) -> impl Iterator<Item = &str> {
    let lookups = match model {
        Model::Fact(fact) => fact.lookups.as_slice(),
        Model::Dimension(_) | Model::Seed(_) | Model::Date(_) | Model::View(_) => &[],
    };
    lookups.iter().map(|lookup| lookup.dimension.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIMENSION: &str = r#"
        [[dimension]]
        name = "dim_a"
        type = 1
        source = "s.a"
        key = ["id"]
        surrogate = "a_sk"
        [dimension.attributes]
        NAME = "NAME"
    "#;
    const FACT: &str = r#"
        [[fact]]
        name = "fact_b"
        source = "s.b"
        grain = ["id"]
        [[fact.lookup]]
        column = "a_sk"
        dimension = "dim_a"
        key = "a_id"
        [fact.columns]
        v = "v"
    "#;

    fn models(texts: &[&str]) -> Models {
        Models::parse(texts.iter().map(|text| ("m.toml", *text))).unwrap()
    }

    fn built(models: &Models) -> BTreeMap<String, Model> {
        models.iter().map(|m| (m.name().to_owned(), m.clone())).collect()
    }

    fn held(name: &str, stale: bool) -> BTreeMap<String, Held> {
        BTreeMap::from([(name.to_owned(), Held { reason: "no".into(), since: Micros(1), stale })])
    }

    fn declarations(models: &Models) -> Vec<String> {
        models.iter().map(Model::declaration).collect()
    }

    #[test]
    fn a_fact_stays_with_the_version_of_its_dimension() {
        let old = models(&[&DIMENSION.replace("NAME", "city"), FACT]);
        let new = models(&[&DIMENSION.replace("NAME", "town"), FACT]);
        let force = in_force(&new, &built(&old), &held("dim_a", false));
        assert_eq!(declarations(&force.models), declarations(&old));
        assert_eq!(force.held.keys().collect::<Vec<_>>(), ["dim_a", "fact_b"]);
        assert!(force.held.values().all(|h| !h.stale));
        // and the dimension with the fact
        let fact = FACT.replace("v = \"v\"", "v = \"v + 1\"");
        let new = models(&[&DIMENSION.replace("NAME", "town"), &fact]);
        let force = in_force(&new, &built(&old), &held("fact_b", false));
        assert_eq!(declarations(&force.models), declarations(&old));
        // nothing was built before: nothing is in force
        let force = in_force(&new, &BTreeMap::new(), &held("dim_a", false));
        assert_eq!(force.models.iter().count(), 0);
        assert!(force.held.values().all(|h| h.stale));
    }

    #[test]
    fn what_cannot_be_kept_up_to_date_takes_its_facts_along_and_no_more() {
        let other = DIMENSION.replace("dim_a", "dim_c").replace("NAME", "city");
        let all = models(&[&DIMENSION.replace("NAME", "city"), FACT, &other]);
        let force = in_force(&all, &built(&all), &held("dim_a", true));
        assert_eq!(force.models.iter().map(Model::name).collect::<Vec<_>>(), ["dim_c"]);
        let force = in_force(&all, &built(&all), &held("fact_b", true));
        assert_eq!(force.models.iter().map(Model::name).collect::<Vec<_>>(), ["dim_a", "dim_c"]);
    }

    #[test]
    fn a_dimension_that_is_gone_stays_for_the_fact_that_needs_it() {
        let old = models(&[&DIMENSION.replace("NAME", "city"), FACT]);
        let lookup = FACT.split("[[fact.lookup]]").next().unwrap();
        let new = models(&[&format!("{lookup}[fact.columns]\nv = \"v\"")]);
        let force = in_force(&new, &built(&old), &held("fact_b", false));
        assert_eq!(declarations(&force.models), declarations(&old));
    }
}
