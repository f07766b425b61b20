/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_CLI_DB_H
#define MOAT_CLI_DB_H 1

/* The Moat database as moatctl uses it: read through the IDL, write with one
 * transaction made of literal OVSDB operations.
 *
 * Not through the IDL's own transactions, because they can only compare rows that
 * exist: that no other vNIC has an address must be said with a "wait" for no row.
 * Every write first waits for what was read to be still so; if it is not, the
 * server refuses all of it. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cli.h"
#include "moat-idl.h"
#include "openvswitch/json.h"
#include "openvswitch/uuid.h"

/* Tables to read. */
#define DB_GLOBAL 0x001 /* with Policy */
#define DB_NETWORK 0x002
#define DB_VM 0x004 /* with VNIC and Network */
#define DB_HOST 0x008
#define DB_ENFORCED 0x010
#define DB_MIGRATION 0x020
#define DB_EVENT 0x040

struct db {
    const struct cli *cli;
    struct ovsdb_idl *idl;
};

/* Connects and reads; waits as long as --timeout says.  Returns NULL or an error,
 * which the caller frees; then `db` need not be closed. */
char *db_try_open(struct db *, const struct cli *, unsigned tables);
/* The same; says what went wrong and what to do. */
bool db_open(struct db *, const struct cli *, unsigned tables);
void db_say_unreachable(const struct cli *, const char *error);
void db_close(struct db *);

/* Waits until something changed, at most until `deadline` (time_msec()).  False: the
 * deadline passed or the connection is lost for good. */
bool db_wait_change(struct db *, long long deadline);

enum db_result {
    DB_DONE,
    DB_CONFLICT, /* what was read is no longer so; nothing has changed */
    DB_ERROR,    /* said why */
};

/* Sends one transaction: an array of operations, which it takes. */
enum db_result db_transact(struct db *, struct json *ops);
/* The same, for commands that need not tell a conflict from an error: returns the
 * exit code and has said what went wrong. */
int db_commit(struct db *, struct json *ops);

/* Operations and values of RFC 7047.  They take the JSON that they are given. */
struct json *db_ops(const struct cli *); /* begins a transaction, with a comment for the log */
void db_insert(struct json *ops, const char *table, const char *uuid_name, struct json *row);
void db_update(struct json *ops, const char *table, struct json *where, struct json *row);
void db_mutate(struct json *ops, const char *table, struct json *where, struct json *mutations);
void db_delete(struct json *ops, const char *table, struct json *where);
/* Refuses the transaction unless exactly `rows` match. */
void db_require(struct json *ops, const char *table, struct json *where, struct json *columns,
                struct json *rows);
/* Refuses it unless the row is there and its column `key` has this value. */
void db_require_row(struct json *ops, const char *table, const struct uuid *, const char *key,
                    const char *value);
struct json *db_where_uuid(const struct uuid *);
struct json *db_triple(const char *column, const char *function, struct json *value);
struct json *db_uuid(const struct uuid *);
struct json *db_named_uuid(const char *name);
struct json *db_set(struct json *array);
struct json *db_map(struct json *array_of_pairs);
struct json *db_pair(const char *key, const char *value);

/* Rows by name; NULL: there is none. */
const struct moatrec_network *db_find_network(const struct db *, const char *name);
const struct moatrec_vm *db_find_vm(const struct db *, const char *name);
const struct moatrec_host *db_find_host(const struct db *, const char *name);
const struct moatrec_vnic *db_find_vnic(const struct db *, const char *id,
                                        const struct moatrec_vm **);

#endif /* control/cli/db.h */
