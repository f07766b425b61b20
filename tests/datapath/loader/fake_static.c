/* SPDX-License-Identifier: Apache-2.0 */

/* A switch without the vhost library. */

#include <stdio.h>

int main(void)
{
    printf("taking traffic\n");
    return 0;
}
