//! The comparison itself: two sorted sequences of rows, walked once. Pure.

use std::{cmp::Ordering, collections::VecDeque};

use millrace_contract::{
    operate::Compared,
    schema::{ColumnType, TableSchema},
};

/// One row's values as PostgreSQL's text.
pub(crate) type Row = Vec<Option<Vec<u8>>>;

/// Whether all key columns are integers, so that keys are ordered as numbers.
pub(crate) fn has_integer_key(schema: &TableSchema) -> bool {
    schema
        .columns
        .iter()
        .filter(|c| c.key)
        .all(|c| matches!(c.column_type, ColumnType::Int2 | ColumnType::Int4 | ColumnType::Int8))
}

#[derive(Debug)]
pub(crate) struct Merge<'a> {
    schema: &'a TableSchema,
    key: Vec<usize>,
    integers: bool,
    examples_max: usize,
    result: Compared,
    last: [Option<Row>; 2],
}

impl<'a> Merge<'a> {
    pub(crate) fn new(schema: &'a TableSchema, examples_max: usize) -> Self {
        let result =
            Compared { what: String::new(), rows_source: 0, rows_warehouse: 0, differing: 0, examples: Vec::new() };
        Self {
            schema,
            key: schema.key().collect(),
            integers: has_integer_key(schema),
            examples_max,
            result,
            last: [None, None],
        }
    }

    /// Compares as many rows as can be decided now: until one side is empty but not ended.
    ///
    /// Fails with the side whose rows are out of order: then equal keys could be missed.
    pub(crate) fn step(
        &mut self,
        source: &mut VecDeque<Row>,
        source_ended: bool,
        warehouse: &mut VecDeque<Row>,
        warehouse_ended: bool,
    ) -> Result<(), &'static str> {
        loop {
            let order = match (source.front(), warehouse.front()) {
                (Some(left), Some(right)) => self.compare_keys(left, right),
                (Some(_), None) if warehouse_ended => Ordering::Less,
                (None, Some(_)) if source_ended => Ordering::Greater,
                _ => return Ok(()),
            };
            let left = if order.is_le() { source.pop_front() } else { None };
            let right = if order.is_ge() { warehouse.pop_front() } else { None };
            self.count(left.as_ref(), right.as_ref());
            for (side, row, name) in [(0, left, "source"), (1, right, "warehouse")] {
                if let (Some(last), Some(row)) = (&self.last[side], &row)
                    && self.compare_keys(last, row).is_ge()
                {
                    return Err(name);
                }
                if row.is_some() {
                    self.last[side] = row;
                }
            }
        }
    }

    pub(crate) fn finish(self, what: String) -> Compared {
        Compared { what, ..self.result }
    }

    fn count(&mut self, left: Option<&Row>, right: Option<&Row>) {
        self.result.rows_source += u64::from(left.is_some());
        self.result.rows_warehouse += u64::from(right.is_some());
        let difference = match (left, right) {
            (Some(left), Some(right)) => match self.differing_columns(left, right) {
                columns if columns.is_empty() => return,
                columns => format!("{} differs in {}", self.key_text(left), columns.join(", ")),
            },
            (Some(left), None) => format!("{} is missing in the warehouse", self.key_text(left)),
            (None, Some(right)) => format!("{} is only in the warehouse", self.key_text(right)),
            (None, None) => return,
        };
        self.result.differing += 1;
        if self.result.examples.len() < self.examples_max {
            self.result.examples.push(difference);
        }
    }

    fn differing_columns(&self, left: &Row, right: &Row) -> Vec<&'a str> {
        let schema = self.schema;
        schema
            .columns
            .iter()
            .zip(left.iter().zip(right))
            .filter(|(column, (left, right))| !same(&column.column_type, left.as_deref(), right.as_deref()))
            .map(|(column, _)| column.name.as_str())
            .collect()
    }

    fn compare_keys(&self, left: &Row, right: &Row) -> Ordering {
        self.key
            .iter()
            .map(|position| {
                let value = |row: &Row| row.get(*position).cloned().flatten().unwrap_or_default();
                let (left, right) = (value(left), value(right));
                match (self.integers, integer(&left), integer(&right)) {
                    (true, Some(left), Some(right)) => left.cmp(&right),
                    _ => left.cmp(&right),
                }
            })
            .find(|order| order.is_ne())
            .unwrap_or(Ordering::Equal)
    }

    fn key_text(&self, row: &Row) -> String {
        let part = |position: &usize| {
            let name = self.schema.columns.get(*position).map_or("", |c| c.name.as_str());
            let value = row.get(*position).and_then(Option::as_deref).unwrap_or_default();
            format!("{name}={}", String::from_utf8_lossy(value))
        };
        self.key.iter().map(part).collect::<Vec<_>>().join(", ")
    }
}

fn integer(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Whether two texts mean the same value. Floats may be written differently by the two engines
/// and are compared as numbers, at their own precision; everything else is compared as text.
fn same(column_type: &ColumnType, left: Option<&[u8]>, right: Option<&[u8]>) -> bool {
    let (Some(left), Some(right)) = (left, right) else {
        return left.is_none() && right.is_none();
    };
    if left == right {
        return true;
    }
    let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<f64>().ok();
    match (column_type, number(left), number(right)) {
        (ColumnType::Float8, Some(left), Some(right)) => left.to_bits() == right.to_bits(),
        #[expect(clippy::cast_possible_truncation, reason = "float4 is compared at its own precision")]
        (ColumnType::Float4, Some(left), Some(right)) => (left as f32).to_bits() == (right as f32).to_bits(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use millrace_contract::schema::{Column, TableName};
    use proptest::prelude::*;

    use super::*;

    fn schema(key_type: ColumnType) -> TableSchema {
        let column =
            |name: &str, column_type, key| Column { name: name.into(), column_type, declared: String::new(), key };
        TableSchema {
            table: TableName::new("s", "t"),
            oid: 1,
            columns: vec![column("id", key_type, true), column("v", ColumnType::Text, false)],
        }
    }

    fn rows(map: &BTreeMap<i64, String>) -> VecDeque<Row> {
        map.iter().map(|(k, v)| vec![Some(k.to_string().into_bytes()), Some(v.clone().into_bytes())]).collect()
    }

    proptest! {
        #[test]
        fn counts_exactly_the_differences(
            left in proptest::collection::btree_map(-20i64..120, "[ab]", 0..60),
            right in proptest::collection::btree_map(-20i64..120, "[ab]", 0..60),
            chunk in 1usize..7,
        ) {
            let schema = schema(ColumnType::Int8);
            let mut merge = Merge::new(&schema, 5);
            let (mut from, mut to) = (rows(&left), rows(&right));
            let (mut a, mut b) = (VecDeque::new(), VecDeque::new());
            while !(from.is_empty() && to.is_empty() && a.is_empty() && b.is_empty()) {
                if a.is_empty() { a.extend(from.drain(..chunk.min(from.len()))); }
                if b.is_empty() { b.extend(to.drain(..chunk.min(to.len()))); }
                merge.step(&mut a, from.is_empty(), &mut b, to.is_empty()).unwrap();
            }
            let result = merge.finish("t".into());
            let keys: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).collect();
            let differing = keys.into_iter().filter(|k| left.get(k) != right.get(k)).count();
            prop_assert_eq!(result.differing, differing as u64);
            prop_assert_eq!(result.examples.len(), differing.min(5));
            prop_assert_eq!((result.rows_source, result.rows_warehouse), (left.len() as u64, right.len() as u64));
        }
    }

    #[test]
    fn disorder_is_refused() {
        let schema = schema(ColumnType::Int8);
        let row = |k: &str| -> Row { vec![Some(k.as_bytes().to_vec()), None] };
        let mut source: VecDeque<Row> = [row("10"), row("9")].into();
        assert_eq!(Merge::new(&schema, 5).step(&mut source, true, &mut VecDeque::new(), true), Err("source"));
    }

    #[test]
    fn floats_compare_as_numbers() {
        assert!(same(&ColumnType::Float4, Some(b"0.1"), Some(b"0.10000000149011612")));
        assert!(!same(&ColumnType::Float8, Some(b"0.1"), Some(b"0.10000000149011612")));
        assert!(same(&ColumnType::Float8, Some(b"NaN"), Some(b"NaN")));
        assert!(!same(&ColumnType::Float8, Some(b"0"), Some(b"-0")));
        assert!(!same(&ColumnType::Text, Some(b"1.0"), Some(b"1")));
        assert!(!same(&ColumnType::Text, Some(b""), None));
    }
}
