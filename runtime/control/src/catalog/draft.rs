//! The next state while a mutation works on it, and the operations that will store the difference.

use std::{collections::HashMap, sync::Arc};

use sandpiper_domain::{
    Expect, FunctionName, MetadataStore, ModelName, Operation, StoreError, TenantName,
};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    Function, ModelEntry, ModelVersion, Snapshot, Tenant, Versions,
    record::{self, FunctionRecord, ModelRecord},
};
use crate::{CatalogError, OpenError, Policies};

/// A mutation's working copy. It shares with the present snapshot all that the mutation leaves alone.
pub(super) struct Draft<'a> {
    pub(super) next: Snapshot,
    pub(super) policies: &'a Policies,
    operations: Vec<Operation>,
    revisions: &'a HashMap<String, u64>,
    metadata: &'a dyn MetadataStore,
}

impl<'a> Draft<'a> {
    pub(super) fn new(
        present: &Snapshot,
        revisions: &'a HashMap<String, u64>,
        metadata: &'a dyn MetadataStore,
        policies: &'a Policies,
    ) -> Self {
        Draft { next: present.clone(), policies, operations: Vec::new(), revisions, metadata }
    }

    pub(super) fn finish(self) -> (Snapshot, Vec<Operation>) {
        (self.next, self.operations)
    }

    /// Stores `value` under `key`, once in a draft.
    pub(super) fn put(&mut self, key: String, value: &impl Serialize) -> Result<(), CatalogError> {
        let expect = self.expect(&key);
        let value = record::write(value)?.into();
        self.operations.push(Operation::Put { key, value, expect });
        Ok(())
    }

    pub(super) fn delete(&mut self, key: String) {
        let expect = self.expect(&key);
        self.operations.push(Operation::Delete { key, expect });
    }

    fn expect(&self, key: &str) -> Expect {
        match self.revisions.get(key) {
            Some(revision) => Expect::Revision(*revision),
            None => Expect::Absent,
        }
    }

    /// Reads a record that is in no snapshot.
    pub(super) fn read<R: DeserializeOwned>(&self, key: &str) -> Result<Option<R>, CatalogError> {
        match self.metadata.get(key)? {
            Some(record) => record::read(&record).map(Some).map_err(OpenError::later),
            None => Ok(None),
        }
    }

    pub(super) fn tenant(&mut self, name: &TenantName) -> Result<&mut Tenant, CatalogError> {
        Arc::make_mut(&mut self.next.tenants)
            .get_mut(name)
            .map(Arc::make_mut)
            .ok_or(CatalogError::NotFound { what: "tenant" })
    }

    /// Edits a function and stores its record.
    pub(super) fn edit_function<T>(
        &mut self,
        tenant: &TenantName,
        name: &FunctionName,
        edit: impl FnOnce(&mut Function) -> Result<T, CatalogError>,
    ) -> Result<T, CatalogError> {
        let function: &mut Function = self
            .tenant(tenant)?
            .functions
            .get_mut(name)
            .map(Arc::make_mut)
            .ok_or(CatalogError::NotFound { what: "function" })?;
        let outcome = edit(function)?;
        function.versions.grant_again();
        let record = FunctionRecord::from(&*function);
        self.put(record::function_key(tenant, name), &record)?;
        Ok(outcome)
    }

    /// Edits a model and stores its record.
    pub(super) fn edit_model<T>(
        &mut self,
        tenant: &TenantName,
        name: &ModelName,
        edit: impl FnOnce(&mut ModelEntry) -> Result<T, CatalogError>,
    ) -> Result<T, CatalogError> {
        let model: &mut ModelEntry = self
            .tenant(tenant)?
            .models
            .get_mut(name)
            .map(Arc::make_mut)
            .ok_or(CatalogError::NotFound { what: "model" })?;
        let outcome = edit(model)?;
        let record = ModelRecord::from(&*model);
        self.put(record::model_key(tenant, name), &record)?;
        Ok(outcome)
    }

    /// As [`Draft::edit_model`], for what concerns its versions and aliases alone.
    pub(super) fn edit_model_versions<T>(
        &mut self,
        tenant: &TenantName,
        name: &ModelName,
        edit: impl FnOnce(&mut Versions<ModelVersion>) -> Result<T, CatalogError>,
    ) -> Result<T, CatalogError> {
        self.edit_model(tenant, name, |model| edit(&mut model.versions))
    }
}

/// Notes what a committed transaction has made of the revisions.
pub(super) fn note(
    revisions: &mut HashMap<String, u64>,
    operations: Vec<Operation>,
    revision: u64,
) {
    for operation in operations {
        match operation {
            Operation::Put { key, .. } => revisions.insert(key, revision),
            Operation::Delete { key, .. } => revisions.remove(&key),
        };
    }
}

impl OpenError {
    /// A failure to read the store while the server runs.
    pub(super) fn later(self) -> CatalogError {
        CatalogError::Store(match self {
            OpenError::Store(error) => error,
            error => StoreError::Failed(error.to_string()),
        })
    }
}
