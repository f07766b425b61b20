/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_AGENT_OVSDB_H
#define MOAT_AGENT_OVSDB_H 1

/* The local Open_vSwitch database, read only; this file is its sole user.
 *
 * A vNIC's port is an Interface of type dpdkvhostuserclient with
 * options:vhost-server-path and external_ids:iface-id.  While the database is
 * away the last contents stay. */

#include <stdbool.h>

#include "moat/ctl.h"

struct shash;

struct ovsdb_port {
    char iface_id[MOAT_ID_MAX];
    char path[MOAT_PATH_MAX];
    char name[64];
};

void ovsdb_init(const char *remote);
void ovsdb_run(void);
void ovsdb_wait(void);
void ovsdb_exit(void);

bool ovsdb_ready(void);    /* was heard at least once */
unsigned ovsdb_seqno(void); /* changes with the contents */

const struct shash *ovsdb_ports(void); /* iface-id -> struct ovsdb_port */
const struct ovsdb_port *ovsdb_port(const char *iface_id);
const struct shash *ovsdb_taps(void); /* name -> iface-id, of ports that may be kernel taps */
const struct shash *ovsdb_problems(void); /* name -> text */

#endif /* ovsdb.h */
