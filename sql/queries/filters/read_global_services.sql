-- The policies that hold where neither machine nor department says: serviceId, useEnabled, provideEnabled.
SELECT
    "serviceId",
    "useEnabled",
    "provideEnabled"
FROM "GlobalServiceConfig";
