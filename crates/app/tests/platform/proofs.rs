//! What retention must leave, and what a proof has found.

use std::fs;

use crate::{
    backup::{walk, with_backups_in},
    harness::{Platform, wait_until},
};

#[test]
fn what_is_held_stays_and_a_failed_proof_is_told_until_it_is_proven() {
    let platform = Platform::init();
    with_backups_in(&platform, "repository = \"backups\"\nkeep_full = 1\nwindow_days = 0");
    platform.up(&["--sample"]);
    let made = || platform.run(&["backup", "create", "--full", "--json"]).json()["label"].as_str().unwrap().to_owned();
    let labels = || -> Vec<String> {
        let all = platform.run(&["backup", "list", "--json"]).json();
        all.as_array().unwrap().iter().map(|of| of["label"].as_str().unwrap().to_owned()).collect()
    };
    let (held, other, newest) = (made(), made(), made());
    platform.run(&["backup", "hold", "20200101T000000Z-none"]).failed(1, "there is no backup");
    platform.run(&["backup", "hold", &held]).ok();
    platform.run(&["backup", "hold", &held]).ok();
    let said = platform.run(&["backup", "expire"]).ok();
    assert!(
        said.contains(&format!("keeps {held}: it is held")) && said.contains(&format!("removed {other}")),
        "{said}"
    );
    assert_eq!(labels(), [held.clone(), newest.clone()]);
    assert!(platform.run(&["backup", "list"]).ok().contains(&format!("{held} (held)")));
    // it is whole, with the log from it on
    assert!(platform.run(&["backup", "prove", &held]).ok().contains("were counted after the backup"));
    platform.run(&["backup", "release", &held]).ok();
    platform.run(&["backup", "release", &held]).failed(2, "is not held");
    platform.run(&["backup", "expire"]).ok();
    assert_eq!(labels(), [newest.as_str()]);

    // one bit of it is flipped, and then is as it was
    let pack = walk(&platform.dir().join("backups")).into_iter().find(|path| path.to_string_lossy().contains("/pack-"));
    let pack = pack.unwrap();
    let whole = fs::read(&pack).unwrap();
    let mut damaged = whole.clone();
    damaged[1_000] ^= 1;
    fs::write(&pack, damaged).unwrap();
    platform.run(&["backup", "prove"]).failed(1, "is damaged: its checksum is wrong");
    let said = platform.run(&["backup", "info"]);
    assert!(said.code == 1 && said.stdout.contains("FAILED ITS PROOF"), "{said:?}");
    assert!(platform.run(&["backup", "list"]).ok().contains("FAILED "));
    wait_until("the status to tell it", || platform.status()["backup"]["unproven"]["label"] == newest.as_str());
    let told = platform.run(&["status"]).ok();
    assert!(told.contains(&format!("{newest} failed its proof: ")) && told.contains("backup create --full"), "{told}");
    fs::write(&pack, whole).unwrap();
    platform.run(&["backup", "prove"]).ok();
    assert!(!platform.run(&["backup", "info"]).ok().contains("FAILED"));
    wait_until("the status to tell that", || platform.status()["backup"]["unproven"].is_null());
    platform.down();
}
