/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_AGENT_ALERT_H
#define MOAT_AGENT_ALERT_H 1

/* What people shall know: an Event row and a line in the log.  The same words
 * about the same vNIC are said at most once a minute. */

#include "cluster.h"
#include "openvswitch/compiler.h"

struct moat_event;

void alert(enum cluster_severity, const char *kind, const char *vnic, const char *vm,
           const char *fmt, ...) OVS_PRINTF_FORMAT(5, 6);

/* The same, but said each time: what a person did, and undid within the minute. */
void alert_always(enum cluster_severity, const char *kind, const char *vnic, const char *vm,
                  const char *fmt, ...) OVS_PRINTF_FORMAT(5, 6);

/* An event of the fast path; those that matter become rows, within a rate. */
void alert_engine(const struct moat_event *, const char *vm);

void alert_exit(void);

#endif /* alert.h */
