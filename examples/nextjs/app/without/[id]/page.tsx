import { Article } from "@/app/article";
import { RefreshWhenSaved } from "@/app/refresh";

export default async function Page({ params }: { params: Promise<{ id: string }> }) {
  const { id } = await params;
  return (
    <Article id={id}>
      {(revision) => <RefreshWhenSaved events={`${process.env.BACKEND_URL}/events`} revision={revision} />}
    </Article>
  );
}
