/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_HOST_CONFIG_H
#define MOAT_HOST_CONFIG_H 1

/* The host's own defaults, for when neither the database nor another host can be
 * asked: a file of key=value lines, '#' starts a comment.  Known keys:
 *
 *   on-missing-policy=block|allow   a vNIC that nobody knows (block)
 *   unprotected-taps=report|block   a VM's kernel tap: set its link down? (report)
 *   database-wait-ms=N              how long an unknown vNIC waits for the database (5000)
 *   handover-wait-ms=N              how long a leaving VM's QEMU may wait for us (400)
 *
 * A file that cannot be read or has a bad line is refused whole: the old
 * contents stay. */

#include <stdbool.h>

#define HOST_CONFIG_FILE "/etc/moat/host.conf"

/* NULL or a message that the caller frees.  A file that is not there is empty. */
char *host_config_read(const char *path);

const char *host_config_get(const char *key); /* NULL: not set */
unsigned host_config_uint(const char *key, unsigned fallback);
void host_config_destroy(void);

#endif /* host_config.h */
