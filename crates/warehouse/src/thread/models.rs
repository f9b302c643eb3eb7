//! The writer's work on models: building what is declared, holding what cannot be built.

use super::*;

impl Writer {
    /// Works with these models from now on, and says so.
    fn take(&mut self, models: Models, held: BTreeMap<String, Held>) -> Result<(), WarehouseError> {
        self.state.built = records::built(&self.connection)?.into_keys().collect::<BTreeSet<_>>();
        self.indexes.recount();
        let sources: BTreeSet<Source> = models.sources();
        let mut told = Vec::new();
        for (name, one) in &held {
            let kept = match (one.stale, build::is_view(&self.connection, name)?) {
                (_, None) => Kept::Nothing,
                (false, Some(_)) => Kept::AsBuilt,
                (true, Some(_)) => Kept::Stale,
            };
            told.push(HeldModel { name: name.clone(), reason: one.reason.clone(), since: one.since, kept });
        }
        self.state.models = Arc::new(models);
        self.held = held;
        self.in_force.send_replace(InForce { held: told, sources });
        Ok(())
    }

    /// Before anything is built: what is there goes on as it was built.
    pub(super) fn take_as_built(&mut self) -> Result<(), WarehouseError> {
        let mut held = records::held(&self.connection)?;
        held.retain(|name, _| self.declared.get(name).is_some());
        if !self.state.copied().is_empty() {
            let built = records::built(&self.connection)?;
            let (reason, since) = ("it is not yet built as it is declared".to_owned(), self.clock.wall());
            let ready = build::ready(&self.declared, &self.state.copied());
            for model in ready.into_iter().filter(|m| built.get(m.name()) != Some(&m.declaration())) {
                held.entry(model.name().to_owned()).or_insert(Held { reason: reason.clone(), since, stale: false });
            }
        }
        let force = in_force(&self.declared, &records::built_models(&self.connection)?, &held);
        self.take(force.models, force.held)
    }

    pub(super) fn rebuild(&mut self) -> Result<Vec<String>, WarehouseError> {
        let (models, tables, now) = (self.state.models.clone(), self.state.copied(), self.clock.wall());
        self.transaction(|writer| build::rebuild(&writer.connection, &models, &tables, None, now))?;
        self.state.built = records::built(&self.connection)?.into_keys().collect();
        self.indexes.recount();
        Ok(models.iter().map(|m| m.name().to_owned()).filter(|name| self.state.built.contains(name)).collect())
    }

    /// Builds what is declared, as far as it can be built: each model that fails is held, one step further
    /// down each time (as declared, as built before, not at all), and the rest is tried again.
    pub(super) fn build(&mut self) -> Result<Built, WarehouseError> {
        let declared = self.declared.clone();
        let before = records::built_models(&self.connection)?;
        self.tried = self.tables();
        let (mut held, lacking) = self.known_unfit();
        if self.tried.is_empty() {
            let force = in_force(&declared, &before, &held);
            self.take(force.models, force.held)?;
            return Ok(self.built(Vec::new(), lacking));
        }
        loop {
            let force = in_force(&declared, &before, &held);
            match self.reconcile(&force.models, &force.held) {
                Ok(changes) => {
                    self.build_at = None;
                    self.take(force.models, force.held)?;
                    return Ok(self.built(changes, lacking));
                }
                Err(WarehouseError::Build { model, reason }) => {
                    tracing::error!(model, reason, "a model cannot be built and is held");
                    match force.held.get(&model) {
                        Some(one) if one.stale => return Err(WarehouseError::Build { model, reason }),
                        Some(one) => drop(held.insert(model, Held { stale: true, ..one.clone() })),
                        None => drop(held.insert(model.clone(), self.newly_held(&model, reason))),
                    }
                }
                Err(error) => {
                    self.build_at = Some(self.clock.monotonic() + BUILD_AGAIN);
                    return Err(error);
                }
            }
        }
    }

    fn built(&self, changes: Vec<Change>, lacking: BTreeSet<Source>) -> Built {
        Built { changes, held: self.in_force.borrow().held.clone(), lacking }
    }

    /// One attempt, in a transaction.
    fn reconcile(&mut self, models: &Models, held: &BTreeMap<String, Held>) -> Result<Vec<Change>, WarehouseError> {
        let (tables, now, declared) = (self.state.copied(), self.clock.wall(), self.declared.clone());
        self.transaction(|writer| {
            let connection = &writer.connection;
            // what is not kept up to date is not dropped either
            for name in held.iter().filter(|(_, one)| one.stale).map(|(name, _)| name) {
                records::forget_model(connection, name)?;
            }
            let gone = records::held(connection)?.into_keys();
            for name in gone.filter(|name| declared.get(name).is_none() && models.get(name).is_none()) {
                records::forget_model(connection, &name)?;
                build::drop_relation(connection, &name)?;
            }
            let changes = build::reconcile(connection, models, &tables, now)?;
            records::complete(connection, models, now)?;
            records::keep_held(connection, held)?;
            Ok(changes)
        })
    }

    /// What need not be tried: by the source's catalog, and by the columns that the warehouse has.
    fn known_unfit(&mut self) -> (BTreeMap<String, Held>, BTreeSet<Source>) {
        let (mut unfit, mut lacking) = (BTreeMap::new(), BTreeSet::new());
        for model in self.declared.iter() {
            let (mut whole, mut absent) = (true, None);
            for source in model.sources() {
                let Some(known) = self.state.tables.get(&source.table).filter(|k| k.copied) else {
                    whole = false;
                    continue;
                };
                let columns = model.columns_of(source);
                let missing = columns.iter().find(|c| known.schema.position(c).is_none());
                if let Some(column) = missing {
                    absent = Some(format!("{source} has no column {column} in the warehouse"));
                    // a copy cannot bring what the source does not have
                    if !self.unfit.contains_key(model.name()) {
                        lacking.insert(source.clone());
                    }
                }
            }
            if whole && absent.is_none() {
                // the catalog was read before the tables became what they are now
                self.unfit.remove(model.name());
            }
            if let Some(reason) = self.unfit.get(model.name()).cloned().or(absent) {
                unfit.insert(model.name().to_owned(), self.newly_held(model.name(), reason));
            }
        }
        (unfit, lacking)
    }

    fn newly_held(&self, name: &str, reason: String) -> Held {
        let since = self.held.get(name).map_or_else(|| self.clock.wall(), |held| held.since);
        Held { reason, since, stale: false }
    }

    /// Holds a model that a batch failed on.
    pub(super) fn hold(&mut self, name: &str, reason: &str) -> Result<(), WarehouseError> {
        tracing::error!(model = name, reason, "a model cannot be brought up to date and is held");
        // the change that it failed on is not in yet: built now, it would fail on the same again
        self.tried = self.tables();
        let before = records::built_models(&self.connection)?;
        let other = |model: &Model| before.get(name).is_some_and(|b| b.declaration() != model.declaration());
        let stale = self.held.contains_key(name) || !self.state.models.get(name).is_some_and(other);
        let mut held = self.held.clone();
        held.insert(name.to_owned(), Held { stale, ..self.newly_held(name, reason.to_owned()) });
        let force = in_force(&self.declared, &before, &held);
        self.transaction(|writer| {
            for name in force.held.iter().filter(|(_, one)| one.stale).map(|(name, _)| name) {
                records::forget_model(&writer.connection, name)?;
            }
            records::keep_held(&writer.connection, &force.held)
        })?;
        self.take(force.models, force.held)
    }

    fn tables(&self) -> Tables {
        self.state.tables.values().filter(|k| k.copied).map(|k| k.schema.clone()).collect()
    }

    /// Tries held models again when tables have changed, or when what was short may be there again.
    pub(super) fn build_if_it_may_help(&mut self) {
        let due = self.build_at.is_some_and(|at| self.clock.monotonic() >= at);
        if self.held.is_empty() || !(due || self.tables() != self.tried) {
            return;
        }
        match self.build() {
            Ok(built) => tracing::info!(held = built.held.len(), "held models were tried again"),
            Err(error) => {
                tracing::warn!(error = %error.words(), "held models cannot be built now");
                self.suspect = true;
            }
        }
    }
}
