#!/usr/bin/env bash
# Two users and three databases: Optuna's, MLflow's, and that of MLflow's users. PostgreSQL's image
# runs it once, on an empty volume; run by hand it makes what is missing and changes nothing.
# libpq's variables say where; the passwords are in the files NAME_PASSWORD_FILE.
set -euo pipefail

psql --set ON_ERROR_STOP=1 --no-psqlrc --quiet \
  --username "${POSTGRES_USER:-postgres}" --dbname "${POSTGRES_DB:-postgres}" <<'SQL'
-- psql reads the files, so no password is on a command line; a failing statement is not logged.
SET log_min_error_statement = panic;
\set optuna_password `cat "$OPTUNA_PASSWORD_FILE"`
\set mlflow_password `cat "$MLFLOW_PASSWORD_FILE"`
SELECT length(:'optuna_password') = 0 OR length(:'mlflow_password') = 0 AS empty \gset
\if :empty
  \warn 'OPTUNA_PASSWORD_FILE or MLFLOW_PASSWORD_FILE cannot be read, or is empty'
  DO 'BEGIN RAISE EXCEPTION ''no password''; END';
\endif

SELECT format('CREATE ROLE %I LOGIN PASSWORD %L', name, password)
  FROM (VALUES ('optuna', :'optuna_password'), ('mlflow', :'mlflow_password')) new(name, password)
  WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec

SELECT format('CREATE DATABASE %I OWNER %I', name, owner)
  FROM (VALUES ('optuna', 'optuna'), ('mlflow', 'mlflow'), ('mlflow_auth', 'mlflow')) new(name, owner)
  WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = name) \gexec

-- Everybody may connect to every database unless it is taken away.
REVOKE ALL ON DATABASE optuna, mlflow, mlflow_auth FROM PUBLIC;
SQL
