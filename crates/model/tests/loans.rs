//! The loans pack's own declarations: they resolve, and their SQL is what was reviewed.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::fmt::Write as _;

use millrace_model::{Base, Changes, Incremental, Model, Models};

fn loans() -> Models {
    let files = [
        ("dimensions.toml", include_str!("../../../packs/loans/models/dimensions.toml")),
        ("facts.toml", include_str!("../../../packs/loans/models/facts.toml")),
        ("views.toml", include_str!("../../../packs/loans/models/views.toml")),
    ];
    Models::parse(files).unwrap()
}

#[test]
fn sources_are_what_a_publication_needs() {
    let sources: Vec<String> = loans().sources().iter().map(ToString::to_string).collect();
    assert_eq!(sources, ["operational.customers", "operational.loans", "operational.payments"]);
}

#[test]
fn generated_sql() {
    let mut out = String::new();
    let changes = Changes {
        tables: ["customers", "loans", "payments"].map(str::to_owned).into(),
        dimensions: ["dim_customer", "dim_loan"].map(str::to_owned).into(),
    };
    for model in loans().iter() {
        writeln!(out, "== {} {}", model.kind(), model.name()).unwrap();
        let statements = match model {
            Model::Dimension(d) => {
                [vec![d.create_keys(), d.create(), d.affected()], d.incremental(), d.rebuild()].concat()
            }
            Model::Seed(s) => vec![s.rows()],
            Model::Date(d) => vec![d.rows()],
            Model::Fact(f) => {
                let how = |carry| Incremental { base: Base::Affected, changes: &changes, carry };
                let carried =
                    if f.carries() { vec![f.create_prior(true), f.delete(), f.insert(how(true))] } else { Vec::new() };
                [
                    vec![f.create(), f.affected(&changes).unwrap(), f.delete()],
                    f.prepare(Base::Affected),
                    vec![f.insert(how(false))],
                    carried,
                ]
                .concat()
            }
            Model::View(v) => vec![v.sql.clone()],
        };
        for statement in statements {
            writeln!(out, "{statement};").unwrap();
        }
    }
    insta::assert_snapshot!(out);
}
