/* SPDX-License-Identifier: Apache-2.0 */
/* The Moat database: see db.h. */

#include "db.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "jsonrpc.h"
#include "openvswitch/dynamic-string.h"
#include "openvswitch/poll-loop.h"
#include "ovsdb-idl-provider.h"
#include "ovsdb-idl.h"
#include "ovsdb-session.h"
#include "out.h"
#include "stream-ssl.h"
#include "svec.h"
#include "timeval.h"
#include "util.h"

/* --- connecting ------------------------------------------------------------- */

/* The TLS library of the stream layer only logs that it cannot read a file. */
static char *check_file(const char *what, const char *option, const char *file)
{
    if (!file)
        return xasprintf("an ssl: remote needs %s: give --%s", what, option);
    if (access(file, R_OK))
        return xasprintf("cannot read %s \"%s\" (--%s): %s", what, file, option,
                         ovs_strerror(errno));
    return NULL;
}

static char *set_up_tls(const struct cli *cli)
{
    static bool done;
    char *error = NULL;

    if (done || !strstr(cli->db_remote, "ssl:"))
        return NULL;
    if ((error = check_file("a private key", "private-key", cli->private_key)) ||
        (error = check_file("a certificate", "certificate", cli->certificate)) ||
        (error = check_file("a CA certificate", "ca-cert", cli->ca_cert)))
        return error;
    stream_ssl_set_key_and_cert(cli->private_key, cli->certificate);
    stream_ssl_set_ca_cert_file(cli->ca_cert, false);
    done = true;
    return NULL;
}

static char *check_remote(const char *remote)
{
    static const char *const kinds[] = {"unix:", "tcp:", "ssl:"};

    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
        if (!strncmp(remote, kinds[i], strlen(kinds[i])))
            return NULL;
    return xasprintf("\"%s\" is no remote: it starts with unix:, tcp: or ssl:", remote);
}

static void monitor(struct ovsdb_idl *idl, const char *table)
{
    const struct ovsdb_idl_class *class = &moatrec_idl_class;

    for (size_t i = 0; i < class->n_tables; i++) {
        const struct ovsdb_idl_table_class *t = &class->tables[i];

        if (strcmp(t->name, table))
            continue;
        ovsdb_idl_add_table(idl, t);
        for (size_t c = 0; c < t->n_columns; c++)
            ovsdb_idl_add_column(idl, &t->columns[c]);
    }
}

static void monitor_tables(struct ovsdb_idl *idl, unsigned tables)
{
    static const struct {
        unsigned bit;
        const char *name;
    } known[] = {
        {DB_GLOBAL, "Global"},
        {DB_GLOBAL, "Policy"},
        {DB_NETWORK | DB_VM, "Network"},
        {DB_VM, "VM"},
        {DB_VM, "VNIC"},
        {DB_HOST, "Host"},
        {DB_ENFORCED, "Enforced"},
        {DB_MIGRATION, "Migration"},
        {DB_EVENT, "Event"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(known); i++)
        if (tables & known[i].bit)
            monitor(idl, known[i].name);
}

/* Of a single server the first failure is final; of several, others are tried. */
static bool has_choice(const char *remote)
{
    return strchr(remote, ',') != NULL;
}

static long long deadline_of(const struct cli *cli)
{
    return time_msec() + cli->timeout_s * 1000LL;
}

char *db_try_open(struct db *db, const struct cli *cli, unsigned tables)
{
    const char *remote = cli->db_remote;
    long long deadline = deadline_of(cli);
    char *error;

    db->cli = cli;
    db->idl = NULL;
    if ((error = check_remote(remote)) || (error = set_up_tls(cli)))
        return error;
    db->idl = ovsdb_idl_create(remote, &moatrec_idl_class, false, has_choice(remote));
    monitor_tables(db->idl, tables);
    for (;;) {
        ovsdb_idl_run(db->idl);
        if (ovsdb_idl_has_ever_connected(db->idl))
            return NULL;
        if (!ovsdb_idl_is_alive(db->idl)) {
            int err = ovsdb_idl_get_last_error(db->idl);

            error = xstrdup(err ? ovs_retval_to_string(err)
                                : "the server has no database \"Moat\", or closed the connection");
            break;
        }
        if (time_msec() >= deadline) {
            error = xasprintf("no answer, or no database \"Moat\" there, in %d s", cli->timeout_s);
            break;
        }
        ovsdb_idl_wait(db->idl);
        poll_timer_wait_until(deadline);
        poll_block();
    }
    db_close(db);
    return error;
}

void db_say_unreachable(const struct cli *cli, const char *error)
{
    cli_error("cannot reach the Moat database at %s: %s", cli->db_remote, error);
    cli_hint("Is its ovsdb-server running? Another database: --db=REMOTE or MOAT_DB.");
}

bool db_open(struct db *db, const struct cli *cli, unsigned tables)
{
    char *error = db_try_open(db, cli, tables);

    if (!error)
        return true;
    db_say_unreachable(cli, error);
    free(error);
    return false;
}

void db_close(struct db *db)
{
    ovsdb_idl_destroy(db->idl);
    db->idl = NULL;
}

bool db_wait_change(struct db *db, long long deadline)
{
    unsigned seqno = ovsdb_idl_get_seqno(db->idl);

    for (;;) {
        ovsdb_idl_run(db->idl);
        if (ovsdb_idl_get_seqno(db->idl) != seqno)
            return true;
        if (!ovsdb_idl_is_alive(db->idl) || time_msec() >= deadline)
            return false;
        ovsdb_idl_wait(db->idl);
        poll_timer_wait_until(deadline);
        poll_block();
    }
}

/* --- one transaction -------------------------------------------------------- */

/* Sends `request` and waits for its answer.  NULL: *error says why; then, if
 * *sent, nobody knows whether it was done. */
static struct jsonrpc_msg *exchange(const struct cli *cli, struct jsonrpc_msg *request, bool *sent,
                                    char **error)
{
    long long deadline = deadline_of(cli);
    struct jsonrpc_msg *reply = NULL;
    struct json *id = json_clone(request->id);
    struct svec remotes = SVEC_EMPTY_INITIALIZER;
    struct uuid cid;
    unsigned seqno = 0;

    *sent = false;
    *error = NULL;
    ovsdb_session_parse_remote(cli->db_remote, &remotes, &cid);
    struct jsonrpc_session *s = jsonrpc_session_open_multiple(&remotes, has_choice(cli->db_remote));
    while (!*error) {
        jsonrpc_session_run(s);
        if (*sent && jsonrpc_session_get_seqno(s) != seqno) {
            *error = xstrdup("the connection was lost");
        } else if (!jsonrpc_session_is_alive(s)) {
            int err = jsonrpc_session_get_last_error(s);

            *error = xstrdup(err ? ovs_retval_to_string(err) : "the connection was closed");
        } else if (time_msec() >= deadline) {
            *error = xasprintf("no answer in %d s", cli->timeout_s);
        } else if (!*sent && jsonrpc_session_is_connected(s)) {
            seqno = jsonrpc_session_get_seqno(s);
            jsonrpc_session_send(s, request);
            request = NULL;
            *sent = true;
        }
        if ((reply = jsonrpc_session_recv(s))) {
            if ((reply->type == JSONRPC_REPLY || reply->type == JSONRPC_ERROR) && reply->id &&
                json_equal(reply->id, id))
                break;
            jsonrpc_msg_destroy(reply);
            reply = NULL;
            continue;
        }
        if (!*error) {
            jsonrpc_session_wait(s);
            jsonrpc_session_recv_wait(s);
            poll_timer_wait_until(deadline);
            poll_block();
        }
    }
    if (reply) {
        free(*error);
        *error = NULL;
    }
    jsonrpc_session_close(s);
    jsonrpc_msg_destroy(request);
    json_destroy(id);
    svec_destroy(&remotes);
    return reply;
}

static const char *member(const struct json *object, const char *name)
{
    const struct json *v =
        object->type == JSON_OBJECT ? shash_find_data(json_object(object), name) : NULL;

    return v && v->type == JSON_STRING ? json_string(v) : NULL;
}

/* What the server made of the transaction. */
static enum db_result judge(const struct jsonrpc_msg *reply)
{
    if (reply->type == JSONRPC_ERROR || !reply->result || reply->result->type != JSON_ARRAY) {
        char *s =
            reply->error ? json_to_string(reply->error, JSSF_SORT) : xstrdup("strange answer");

        cli_error("the database refused the request: %s", s);
        free(s);
        return DB_ERROR;
    }
    for (size_t i = 0; i < json_array(reply->result)->n; i++) {
        const struct json *r = json_array(reply->result)->elems[i];
        const char *error = member(r, "error"), *details = member(r, "details");

        if (!error)
            continue;
        if (!strcmp(error, "timed out")) /* a db_require() */
            return DB_CONFLICT;
        cli_error("the database refused the change: %s%s%s", error, details ? ": " : "",
                  details ? details : "");
        cli_hint("Nothing has changed.");
        return DB_ERROR;
    }
    return DB_DONE;
}

enum db_result db_transact(struct db *db, struct json *ops)
{
    enum db_result result = DB_ERROR;
    bool sent;
    char *error;
    struct jsonrpc_msg *reply =
        exchange(db->cli, jsonrpc_create_request("transact", ops, NULL), &sent, &error);

    if (reply) {
        result = judge(reply);
        jsonrpc_msg_destroy(reply);
    } else if (sent) {
        cli_error("the change was sent to %s, but %s", db->cli->db_remote, error);
        cli_hint("It may or may not have been made: look before you try again.");
    } else {
        db_say_unreachable(db->cli, error);
    }
    free(error);
    return result;
}

int db_commit(struct db *db, struct json *ops)
{
    enum db_result result = db_transact(db, ops);

    if (result == DB_CONFLICT) {
        cli_error("somebody else changed the same thing at the same moment; this changed nothing");
        cli_hint("Look at what is there now and try again.");
    }
    return result == DB_DONE ? CLI_OK : CLI_FAILED;
}

/* --- operations ------------------------------------------------------------- */

struct json *db_ops(const struct cli *cli)
{
    struct json *ops = json_array_create_1(json_string_create("Moat"));
    struct json *op = json_object_create();
    struct ds comment = DS_EMPTY_INITIALIZER;

    ds_put_format(&comment, "moatctl (uid %u): %s", (unsigned)getuid(), cli->command->name);
    for (size_t i = 0; i < cli->n_args; i++)
        ds_put_format(&comment, " %s", cli->args[i]);
    json_object_put_string(op, "op", "comment");
    json_object_put(op, "comment", json_text(ds_cstr(&comment)));
    ds_destroy(&comment);
    json_array_add(ops, op);
    return ops;
}

static struct json *add_op(struct json *ops, const char *name, const char *table)
{
    struct json *op = json_object_create();

    json_object_put_string(op, "op", name);
    json_object_put_string(op, "table", table);
    json_array_add(ops, op);
    return op;
}

void db_insert(struct json *ops, const char *table, const char *uuid_name, struct json *row)
{
    struct json *op = add_op(ops, "insert", table);

    json_object_put(op, "row", row);
    if (uuid_name)
        json_object_put_string(op, "uuid-name", uuid_name);
}

void db_update(struct json *ops, const char *table, struct json *where, struct json *row)
{
    struct json *op = add_op(ops, "update", table);

    json_object_put(op, "where", where);
    json_object_put(op, "row", row);
}

void db_mutate(struct json *ops, const char *table, struct json *where, struct json *mutations)
{
    struct json *op = add_op(ops, "mutate", table);

    json_object_put(op, "where", where);
    json_object_put(op, "mutations", mutations);
}

void db_delete(struct json *ops, const char *table, struct json *where)
{
    json_object_put(add_op(ops, "delete", table), "where", where);
}

void db_require(struct json *ops, const char *table, struct json *where, struct json *columns,
                struct json *rows)
{
    struct json *op = add_op(ops, "wait", table);

    json_object_put(op, "where", where);
    json_object_put(op, "columns", columns);
    json_object_put(op, "rows", rows);
    json_object_put_string(op, "until", "==");
    json_object_put(op, "timeout", json_integer_create(0));
}

void db_require_row(struct json *ops, const char *table, const struct uuid *uuid, const char *key,
                    const char *value)
{
    struct json *row = json_object_create();

    json_object_put_string(row, key, value);
    db_require(ops, table, db_where_uuid(uuid), json_array_create_1(json_string_create(key)),
               json_array_create_1(row));
}

struct json *db_where_uuid(const struct uuid *uuid)
{
    return json_array_create_1(db_triple("_uuid", "==", db_uuid(uuid)));
}

struct json *db_triple(const char *column, const char *function, struct json *value)
{
    return json_array_create_3(json_string_create(column), json_string_create(function), value);
}

static struct json *tagged(const char *tag, struct json *value)
{
    return json_array_create_2(json_string_create(tag), value);
}

struct json *db_uuid(const struct uuid *uuid)
{
    return tagged("uuid", json_string_create_nocopy(xasprintf(UUID_FMT, UUID_ARGS(uuid))));
}

struct json *db_named_uuid(const char *name)
{
    return tagged("named-uuid", json_string_create(name));
}

struct json *db_set(struct json *array)
{
    return tagged("set", array);
}

struct json *db_map(struct json *array_of_pairs)
{
    return tagged("map", array_of_pairs);
}

struct json *db_pair(const char *key, const char *value)
{
    return json_array_create_2(json_string_create(key), json_string_create(value));
}

/* --- rows by name ----------------------------------------------------------- */

const struct moatrec_network *db_find_network(const struct db *db, const char *name)
{
    const struct moatrec_network *n;

    MOATREC_NETWORK_FOR_EACH(n, db->idl)
    if (!strcmp(n->name, name))
        return n;
    return NULL;
}

const struct moatrec_vm *db_find_vm(const struct db *db, const char *name)
{
    const struct moatrec_vm *vm;

    MOATREC_VM_FOR_EACH(vm, db->idl)
    if (!strcmp(vm->name, name) || !strcmp(vm->vm_uuid, name))
        return vm;
    return NULL;
}

const struct moatrec_host *db_find_host(const struct db *db, const char *name)
{
    const struct moatrec_host *h;

    MOATREC_HOST_FOR_EACH(h, db->idl)
    if (!strcmp(h->name, name))
        return h;
    return NULL;
}

const struct moatrec_vnic *db_find_vnic(const struct db *db, const char *id,
                                        const struct moatrec_vm **owner)
{
    const struct moatrec_vm *vm;

    MOATREC_VM_FOR_EACH(vm, db->idl)
    for (size_t i = 0; i < vm->n_vnics; i++)
        if (!strcmp(vm->vnics[i]->vnic_id, id)) {
            if (owner)
                *owner = vm;
            return vm->vnics[i];
        }
    return NULL;
}
