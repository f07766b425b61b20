/* SPDX-License-Identifier: Apache-2.0 */

/* Only the Interface table, and of it only what tells a vNIC from other ports.
 * The tables built from it are rebuilt whole when a row has changed: hundreds of
 * ports at most. */

#include <config.h>

#include "ovsdb.h"

#include <stdio.h>
#include <string.h>

#include "openvswitch/shash.h"
#include "openvswitch/vlog.h"
#include "ovsdb-idl.h"
#include "smap.h"
#include "util.h"
#include "vswitch-idl.h"

VLOG_DEFINE_THIS_MODULE(ovsdb);

static struct ovsdb_idl *idl;
static unsigned seqno;
static bool ready;
static struct shash ports = SHASH_INITIALIZER(&ports);
static struct shash taps = SHASH_INITIALIZER(&taps);
static struct shash problems = SHASH_INITIALIZER(&problems);

void ovsdb_init(const char *remote)
{
    idl = ovsdb_idl_create(remote, &ovsrec_idl_class, false, true);
    ovsdb_idl_add_table(idl, &ovsrec_table_interface);
    ovsdb_idl_add_column(idl, &ovsrec_interface_col_name);
    ovsdb_idl_add_column(idl, &ovsrec_interface_col_type);
    ovsdb_idl_add_column(idl, &ovsrec_interface_col_options);
    ovsdb_idl_add_column(idl, &ovsrec_interface_col_external_ids);
    seqno = ovsdb_idl_get_seqno(idl);
}

static void problem(const struct ovsrec_interface *row, const char *text)
{
    free(shash_replace(&problems, row->name, xstrdup(text)));
}

static void add_port(const struct ovsrec_interface *row, const char *iface_id)
{
    const char *path = smap_get(&row->options, "vhost-server-path");

    if (!path || strlen(path) >= MOAT_PATH_MAX) {
        problem(row, "its vhost-server-path is missing or too long");
        return;
    }
    if (shash_find(&ports, iface_id)) {
        problem(row, "another port has the same iface-id");
        return;
    }
    struct ovsdb_port *p = xzalloc(sizeof *p);
    ovs_strlcpy(p->iface_id, iface_id, sizeof p->iface_id);
    ovs_strlcpy(p->path, path, sizeof p->path);
    ovs_strlcpy(p->name, row->name, sizeof p->name);
    shash_add(&ports, iface_id, p);
}

static void rebuild(void)
{
    const struct ovsrec_interface *row;

    shash_clear_free_data(&ports);
    shash_clear_free_data(&taps);
    shash_clear_free_data(&problems);
    OVSREC_INTERFACE_FOR_EACH (row, idl) {
        const char *iface_id = smap_get(&row->external_ids, "iface-id");

        if (!iface_id || !*iface_id)
            continue;
        if (strlen(iface_id) >= MOAT_ID_MAX) {
            problem(row, "its iface-id is too long");
            continue;
        }
        if (!strcmp(row->type, "dpdkvhostuserclient"))
            add_port(row, iface_id);
        else if (!*row->type || !strcmp(row->type, "system") || !strcmp(row->type, "tap"))
            free(shash_replace(&taps, row->name, xstrdup(iface_id)));
    }
    struct shash_node *node;
    SHASH_FOR_EACH (node, &problems) {
        VLOG_WARN("port %s: %s", node->name, (const char *)node->data);
    }
}

void ovsdb_run(void)
{
    ovsdb_idl_run(idl);
    if (ovsdb_idl_get_seqno(idl) == seqno)
        return;
    seqno = ovsdb_idl_get_seqno(idl);
    if (ovsdb_idl_has_ever_connected(idl)) {
        ready = true;
        rebuild();
    }
}

void ovsdb_wait(void)
{
    ovsdb_idl_wait(idl);
}

void ovsdb_exit(void)
{
    shash_destroy_free_data(&ports);
    shash_destroy_free_data(&taps);
    shash_destroy_free_data(&problems);
    ovsdb_idl_destroy(idl);
}

bool ovsdb_ready(void)
{
    return ready;
}

unsigned ovsdb_seqno(void)
{
    return seqno;
}

const struct shash *ovsdb_ports(void)
{
    return &ports;
}

const struct ovsdb_port *ovsdb_port(const char *iface_id)
{
    return shash_find_data(&ports, iface_id);
}

const struct shash *ovsdb_taps(void)
{
    return &taps;
}

const struct shash *ovsdb_problems(void)
{
    return &problems;
}
