//! The page of backups: what can be restored, the hole in it, and the way back to a moment.

use super::Bench;

#[tokio::test]
async fn what_can_be_restored_is_said_with_its_holes() {
    let bench = Bench::logged_in().await;
    let page = bench.get("/backups").await.text;
    for part in [
        "Any moment from 2024-05-15 16:00:00 to 2024-05-31 23:59:59 UTC can be restored",
        "verdict warn",
        "no moment in a hole can be restored",
        "s3://kilima-backups/production",
        "<code>backup-00</code>",
        "<rect class=\"whole\"",
        "<rect class=\"full\"",
        "C/10000000 to C/14000000",
        "<a href=\"/backups\" aria-current=\"page\">Backups</a>",
        // the field begins with the latest moment there is
        "value=\"2024-05-31T23:59:59\"",
    ] {
        assert!(page.contains(part), "{part} in {page}");
    }
    assert_eq!(page.matches("<rect class=\"whole\"").count(), 2, "two stretches");
    assert!(!page.contains("restore --in-place"), "no commands before a moment is given");
}

#[tokio::test]
async fn the_way_back_to_a_moment() {
    let bench = Bench::logged_in().await;
    let page = bench.get("/backups?at=2024-05-30T10%3A00%3A00").await.text;
    for part in [
        "<code>backup-07</code> + <code>backup-06</code> and 212 files of the log on timeline 4",
        "millrace clone make --at '2024-05-30T10:00:00Z'",
        "millrace backup restore-table SCHEMA.TABLE --at '2024-05-30T10:00:00Z'",
        "millrace backup restore --in-place --time '2024-05-30T10:00:00Z'",
    ] {
        assert!(page.contains(part), "{part} in {page}");
    }
    let page = bench.get("/backups?at=%3Cscript%3E").await.text;
    assert!(page.contains("`&lt;script&gt;` is no moment") && !page.contains("<script>"), "{page}");
}
