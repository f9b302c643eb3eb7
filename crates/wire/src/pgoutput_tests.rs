//! The decoder against messages built here by the manual's formats, and against noise.

use bytes::{BufMut, BytesMut};
use proptest::prelude::*;

use super::*;

fn put_text(out: &mut BytesMut, text: &str) {
    out.put_slice(text.as_bytes());
    out.put_u8(0);
}

fn put_tuple(out: &mut BytesMut, kind: u8, values: &[Value<'_>]) {
    out.put_u8(kind);
    out.put_u16(u16::try_from(values.len()).unwrap());
    for value in values {
        match value {
            Value::Null => out.put_u8(b'n'),
            Value::Unchanged => out.put_u8(b'u'),
            Value::Text(text) => {
                out.put_u8(b't');
                out.put_i32(i32::try_from(text.len()).unwrap());
                out.put_slice(text);
            }
            Value::Binary(bytes) => {
                out.put_u8(b'b');
                out.put_i32(i32::try_from(bytes.len()).unwrap());
                out.put_slice(bytes);
            }
        }
    }
}

fn values(tuple: Tuple<'_>) -> Vec<Value<'_>> {
    tuple.values().collect()
}

#[test]
fn a_transaction_decodes() {
    let mut out = BytesMut::new();
    out.put_u8(b'B');
    out.put_u64(0x100);
    out.put_i64(1);
    out.put_u32(77);
    let begin = decode(&out, false).unwrap().message;
    assert_eq!(begin, Message::Begin { final_lsn: Lsn(0x100), commit_time: Micros(946_684_800_000_001), xid: 77 });

    let row = [Value::Text(b"1"), Value::Null, Value::Unchanged, Value::Text(b"")];
    let mut out = BytesMut::new();
    out.put_u8(b'I');
    out.put_u32(16_400);
    put_tuple(&mut out, b'N', &row);
    let Message::Insert { relation: 16_400, new } = decode(&out, false).unwrap().message else { panic!() };
    assert_eq!(values(new), row);
    assert_eq!(new.len(), 4);

    let mut out = BytesMut::new();
    out.put_u8(b'C');
    out.put_u8(0);
    out.put_u64(0x100);
    out.put_u64(0x130);
    out.put_i64(1);
    assert!(matches!(decode(&out, false).unwrap().message, Message::Commit { end_lsn: Lsn(0x130), .. }));
}

#[test]
fn old_rows_are_told_apart() {
    for (kind, full) in [(b'K', false), (b'O', true)] {
        let mut out = BytesMut::new();
        out.put_u8(b'U');
        out.put_u32(1);
        put_tuple(&mut out, kind, &[Value::Text(b"old")]);
        put_tuple(&mut out, b'N', &[Value::Text(b"new")]);
        let Message::Update { old: Some(old), new, .. } = decode(&out, false).unwrap().message else { panic!() };
        assert_eq!(matches!(old, OldTuple::Row(_)), full);
        assert_eq!((values(old.tuple()), values(new)), (vec![Value::Text(b"old")], vec![Value::Text(b"new")]));
    }
    let mut out = BytesMut::new();
    out.put_u8(b'D');
    out.put_u32(1);
    put_tuple(&mut out, b'N', &[Value::Null]);
    assert_eq!(decode(&out, false), Err(DecodeError::Unexpected { what: "tuple kind", value: b'N' }));
}

#[test]
fn relations_and_truncates() {
    let mut out = BytesMut::new();
    out.put_u8(b'R');
    out.put_u32(9); // the subtransaction, since this one is streamed
    out.put_u32(16_400);
    put_text(&mut out, "");
    put_text(&mut out, "loans");
    out.put_u8(b'd');
    out.put_u16(2);
    for (flags, name) in [(1, "id"), (0, "amount")] {
        out.put_u8(flags);
        put_text(&mut out, name);
        out.put_u32(1700);
        out.put_i32(-1);
    }
    let decoded = decode(&out, true).unwrap();
    assert_eq!(decoded.xid, Some(9));
    let Message::Relation(relation) = decoded.message else { panic!() };
    assert_eq!((relation.schema, relation.name), ("pg_catalog", "loans"));
    assert_eq!(relation.columns().map(|c| (c.name, c.key)).collect::<Vec<_>>(), [("id", true), ("amount", false)]);

    let mut out = BytesMut::new();
    out.put_u8(b'T');
    out.put_i32(2);
    out.put_u8(3);
    out.put_u32(5);
    out.put_u32(6);
    let Message::Truncate { relations, cascade: true, restart_identity: true } = decode(&out, false).unwrap().message
    else {
        panic!()
    };
    assert_eq!(relations.iter().collect::<Vec<_>>(), [5, 6]);
}

#[test]
fn damage_is_named() {
    assert_eq!(decode(b"", false), Err(DecodeError::Short("message type")));
    assert_eq!(decode(b"?", false), Err(DecodeError::UnknownMessage(b'?')));
    assert_eq!(decode(b"E!", false), Err(DecodeError::Trailing(1)));
    // a value longer than the message, and a negative length
    assert_eq!(decode(b"I\0\0\0\x01N\0\x01t\x7f\xff\xff\xffx", false), Err(DecodeError::Short("value")));
    assert_eq!(decode(b"I\0\0\0\x01N\0\x01t\xff\xff\xff\xffx", false), Err(DecodeError::Negative("value length")));
    assert_eq!(decode(b"T\x7f\xff\xff\xff\0", false), Err(DecodeError::Short("relations")));
}

fn touch(bytes: &[u8], in_stream: bool) {
    if let Ok(decoded) = decode(bytes, in_stream) {
        match decoded.message {
            Message::Insert { new, .. } => assert_eq!(new.values().count(), new.len()),
            Message::Update { old, new, .. } => {
                assert_eq!(new.values().count(), new.len());
                if let Some(old) = old {
                    assert_eq!(old.tuple().values().count(), old.tuple().len());
                }
            }
            Message::Relation(relation) => assert_eq!(relation.columns().count(), relation.len()),
            Message::Truncate { relations, .. } => assert!(relations.iter().count() <= bytes.len()),
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..96), in_stream: bool) {
        touch(&bytes, in_stream);
    }

    #[test]
    fn noise_after_a_known_type_never_panics(
        kind in proptest::sample::select(b"BCORYIUDTMSEcA".to_vec()),
        rest in proptest::collection::vec(
            prop_oneof![Just(0u8), Just(1), proptest::sample::select(b"NKOtnub".to_vec()), any::<u8>()], 0..64),
        in_stream: bool,
    ) {
        let mut bytes = vec![kind];
        bytes.extend(rest);
        touch(&bytes, in_stream);
    }
}
