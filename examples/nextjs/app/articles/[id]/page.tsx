import { Article } from "@/app/article";
import { RefreshWhenRelayed } from "@/app/refresh";
import Link from "next/link";

export default async function Page({ params }: { params: Promise<{ id: string }> }) {
  const { id } = await params;
  return (
    <>
      <Article id={id}>
        {(revision) => <RefreshWhenRelayed subject={`relayed.cache.article.${id}`} revision={revision} />}
      </Article>
      <Link href="/articles">All articles</Link>
    </>
  );
}
